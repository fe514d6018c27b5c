"""A whole sweep over a real model: its report equals encoders really cut, and a stopped one resumes."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from embedder.benchmark.exit_cost import make_up_exits
from embedder.config.embed import EmbedConfig, GateConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.core.quantization import cut_vectors
from embedder.core.storage import Location
from embedder.core.text_hashes import hash_texts
from embedder.model.calibration import write_calibration
from embedder.model.encoder import Encoder
from embedder.model.resolve import resolve_model
from embedder.run.quality_gate import check_quality_gate
from embedder.sweep.candidates import Cache, tokenize
from embedder.sweep.config import GridConfig, SweepConfig
from embedder.sweep.cost import Corpus, ExitVariant, Speed
from embedder.sweep.datasets import Retrieval
from embedder.sweep.metrics import NDCG, score_retrieval
from embedder.sweep.prepare import Model, prepare_sweep
from embedder.sweep.report import build_config, build_csv, print_report, write_report
from embedder.sweep.retrieval import rank_documents
from embedder.sweep.run import SweepResult, run_sweep
from tests.conftest import WriteShard
from tests.sentences import quiet, sentence

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


def settings(folder: Path, minilm: str, **sections: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "source": {"uri": str(folder / "corpus"), "id_column": "id"},
        "embedding": {"model": minilm},
        "grid": {"depths": [6, 3], "dims": [384, 64]},
        "sample": {"documents": 200, "queries": 60},
        "compute": {"dtype": "float32", "price_per_device_hour_usd": 1.0},
        "output": {"uri": str(folder / "sweep")},
    }
    return values | sections


def write_corpus(folder: Path, count: int) -> None:
    (folder / "corpus").mkdir()
    rows = [{"id": f"d{n}", "text": f"{sentence(n)} {sentence(n + 500)} {sentence(n * 7 % 900)}"} for n in range(count)]
    (folder / "corpus" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def swept(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    folder = tmp_path_factory.mktemp("sweep")
    write_corpus(folder, 400)
    plan = prepare_sweep(SweepConfig.model_validate(settings(folder, minilm)))
    found = run_sweep(plan, quiet)
    write_report(found)
    return found


def time_nothing(models: Sequence[Model], *_: object) -> dict[str, tuple[Corpus, dict[ExitVariant, Speed]]]:
    """Stand for the speeds of a sweep that is not looked at for its costs."""
    return {each.chunking: (Corpus(1, 1, 1, False), defaultdict(lambda: Speed(1000.0, 1.0, 1))) for each in models}


def report_of(swept: SweepResult) -> Path:
    return Path(swept.plan.config.output.uri, "report.json")


def test_every_combination_has_a_row_with_quality_and_cost(swept: SweepResult) -> None:
    # depth 6: 2 dims × 4 precisions; depth 3: the same for each query side
    assert len(swept.rows) == 8 + 16
    full = swept.full
    assert full.kept is not None
    assert (full.kept.share, full.kept.low, full.kept.high) == (1, 1, 1)
    assert full.metrics["fidelity"] == pytest.approx({"cosine to full": 1, "top-10 kept": 1}, abs=1e-6)
    assert {row.setting.bytes_per_vector for row in swept.rows if row.setting.dim == 64} == {256, 64, 8}
    assert all(row.cost.usd and row.cost.seconds > 0 and row.cost.index_bytes > 0 for row in swept.rows)
    small, large = (next(row for row in swept.rows if row.setting.depth == depth) for depth in (3, 6))
    assert small.cost.model_bytes is not None
    assert large.cost.model_bytes is not None
    assert small.cost.model_bytes < large.cost.model_bytes


def test_the_corpus_is_estimated_from_the_sample_and_the_listing(swept: SweepResult) -> None:
    assert swept.corpus.is_estimate
    assert swept.corpus.documents == 400
    assert swept.corpus.chunks == 400
    assert swept.corpus.tokens == pytest.approx(400 * 32, rel=0.1)


def test_the_score_of_a_row_equals_an_encoder_cut_there(swept: SweepResult) -> None:
    [dataset] = swept.plan.datasets
    assert isinstance(dataset, Retrieval)
    resolved = swept.plan.model.resolved
    encoder = Encoder.load(resolved.spec.model_copy(update={"depth": 3, "dim": 64}), dtype="float32")
    queries, documents = (
        encoder.encode(tokenize(texts, resolved, resolved.spec), 4096).vectors_ND for texts in (dataset.queries, dataset.documents)
    )
    expected = score_retrieval(rank_documents(queries, documents, "float32", 100), dataset)[NDCG].mean()
    wanted = (3, 64, "float32", "same")
    row = next(row for row in swept.rows if (row.setting.depth, row.setting.dim, row.setting.precision, row.setting.query_side) == wanted)
    assert row.metrics["known items"][NDCG] == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(cut_vectors(queries, 64, normalize=True), queries, atol=1e-5)


def test_the_files_hold_the_same_rows(swept: SweepResult) -> None:
    record = json.loads(report_of(swept).read_text())
    with report_of(swept).with_name("report.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(record["rows"]) == len(lines) == len(swept.rows)
    for row, line in zip(record["rows"], lines, strict=True):
        assert (row["setting"]["depth"], row["setting"]["dim"]) == (int(line["depth"]), int(line["dim"]))
        assert row["kept"]["share"] == pytest.approx(float(line["kept_share"]))
    assert record["choice"]["setting"] is not None


def test_a_cell_that_begins_like_a_formula_is_quoted(swept: SweepResult) -> None:
    row = replace(swept.rows[0], metrics={"=cmd|' /C calc'!A0": {"ndcg": 0.5, "low": -0.25}})
    (line,) = csv.DictReader(io.StringIO(build_csv([row], [])))
    assert line["'=cmd|' /C calc'!A0 ndcg"] == "0.5"
    assert line["'=cmd|' /C calc'!A0 low"] == "-0.25"


def test_the_page_is_self_contained_and_holds_the_command_to_run(swept: SweepResult) -> None:
    page = report_of(swept).with_name("report.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") >= 2
    assert "color-scheme: light dark" in page
    assert "quality kept, int8" in page
    assert "python -m jobs.embed FILE" in page


def test_the_config_to_paste_is_valid_for_embed(swept: SweepResult) -> None:
    record = json.loads(report_of(swept).read_text())
    config = EmbedConfig.model_validate(yaml.safe_load(record["embed"]))
    setting = record["choice"]["setting"]
    assert (config.embedding.depth, config.embedding.dim) == (setting["depth"], setting["dim"])
    assert config.gate == GateConfig(report=str(report_of(swept)), min_quality=config.gate.min_quality if config.gate else 1)


def test_the_config_of_every_row_passes_its_own_gate(swept: SweepResult) -> None:
    for row in swept.rows:
        if row.can_be_embedded and row.setting.precision != "int8":  # int8 needs a calibration
            config = EmbedConfig.model_validate(yaml.safe_load(build_config(swept.plan.config, row)))
            check_quality_gate(config, resolve_model(config.embedding, config.chunking).spec)


def embed_config(swept: SweepResult, min_quality: float, **embedding: Any) -> tuple[EmbedConfig, Any]:
    assert swept.plan.config.source is not None
    config = EmbedConfig.model_validate(
        {
            "source": swept.plan.config.source.model_dump(),
            "embedding": {"model": swept.full.setting.model} | embedding,
            "output": {"uri": "out"},
            "gate": {"report": str(report_of(swept)), "min_quality": min_quality},
        }
    )
    return config, swept.plan.model.resolved.spec.model_copy(update=embedding)


def test_the_gate_passes_only_measured_settings_that_keep_enough(swept: SweepResult) -> None:
    check_quality_gate(*embed_config(swept, 1.0))
    with pytest.raises(ConfigError, match=r"gate.min_quality=0.99: depth 3, dim 64, .* keeps 0\.\d+ of the full model's quality"):
        check_quality_gate(*embed_config(swept, 0.99, depth=3, dim=64))
    with pytest.raises(ConfigError, match="holds no row for depth 5"):
        check_quality_gate(*embed_config(swept, 0.5, depth=5))


def test_the_gate_refuses_the_report_of_another_run(swept: SweepResult, tmp_path: Path) -> None:
    config, spec = embed_config(swept, 0.5)
    with pytest.raises(ConfigError, match=r"of another run \(prompt: '' → 'passage: '\)"):
        check_quality_gate(config, spec.model_copy(update={"prompt": "passage: "}))
    elsewhere = config.model_copy(update={"source": config.source.model_copy(update={"uri": "elsewhere"})})
    with pytest.raises(ConfigError, match=r"source.uri: .* → 'elsewhere'"):
        check_quality_gate(elsewhere, spec)
    (tmp_path / "other.json").write_text("{}")
    wrong = config.model_copy(update={"gate": GateConfig(report=str(tmp_path / "other.json"))})
    with pytest.raises(ConfigError, match=r"not a report of jobs\.sweep"):
        check_quality_gate(wrong, spec)


def test_a_sweep_of_bits_alone_also_scores_the_full_model(swept: SweepResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedder.sweep.run.time_model", time_nothing)
    config = swept.plan.config
    bits = config.model_copy(update={"grid": GridConfig(depths=(6,), dims=(384,), precisions=("binary", "binary_rescored"))})
    found = run_sweep(prepare_sweep(bits), quiet)
    assert [row.setting.precision for row in found.rows] == ["float32", "binary", "binary_rescored"]
    assert found.full.kept is not None
    assert found.full.kept.share == 1


def test_cached_texts_are_not_run_again(swept: SweepResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a second pass")

    monkeypatch.setattr(Encoder, "tap", refuse)
    monkeypatch.setattr("embedder.sweep.run.time_model", time_nothing)
    again = run_sweep(prepare_sweep(swept.plan.config), quiet)
    assert [row.metrics for row in again.rows] == [row.metrics for row in swept.rows]


def test_every_problem_is_reported_before_a_model_runs(
    tmp_path: Path, minilm: str, write_beir: Callable[..., str], write_shard: WriteShard
) -> None:
    write_shard([{"id": "1", "text": "a"}], "corpus/a.jsonl")
    beir = write_beir([(f"q{number}", "gone", 1) for number in range(12)])
    values = settings(
        tmp_path, minilm, grid={"depths": [9, 3], "dims": [504, 64]}, quality={"beir": [beir], "known_item": True, "mteb": ["NoSuchTask"]},
        baselines=[{"model": str(tmp_path / "none")}, {"model": minilm}],
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        prepare_sweep(SweepConfig.model_validate(values))
    message = str(caught.value)
    for problem in (
        "grid.depths: 9: the model has 6 layers; choose 1 to 6",
        "grid.dims: 504: the model has 384 components; choose 1 to 384",
        "names 1 documents that are missing (gone)",
        "quality.known_item: 1 documents; recall@100 needs more than 100",
        "is listed twice",
        "no such folder",
        "quality.mteb='NoSuchTask'",
    ):
        assert problem in message, message


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"source": None}, "there is nothing to measure on"),
        ({"embedding": {"model": "m", "depth": 3}}, "set grid.depths and grid.dims"),
        ({"pick": {"budget_usd": 5}, "compute": {}}, "needs compute.price_per_device_hour_usd"),
        ({"baselines": [{"model": "openai:x"}]}, "dims are needed"),
        ({"baselines": [{"model": "m2", "base_url": "http://x"}]}, "is for models named openai:NAME"),
        ({"quality": {"sts": ["a.csv"], "query_column": "title"}}, "has no effect without known items"),
        ({"grid": {"dims": [64, 63]}}, "grid.dims: 63: binary packs eight components into a byte"),
        ({"baselines": [{"model": "openai:x", "dims": [100]}]}, r"baselines\[0\].dims: 100: binary packs eight"),
    ],
)
def test_inconsistent_settings_are_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepConfig.model_validate(settings(tmp_path, "m", **sections))


@pytest.mark.slow
def test_a_killed_sweep_resumes_with_its_finished_blocks(tmp_path: Path, minilm: str) -> None:
    (tmp_path / "corpus").mkdir()
    rows = [{"id": f"d{n}", "text": f"Number {n} comes first. " + " ".join(sentence(n + part) for part in range(20))} for n in range(400)]
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grid = {"depths": [6, 1], "dims": [384], "precisions": ["float32"]}
    values = settings(tmp_path, minilm, sample={"documents": 400, "queries": 20}, grid=grid, compute={})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "jobs.sweep", str(tmp_path / "sweep.yaml")]
    taps = tmp_path / "sweep" / "taps"
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while first.poll() is None and time.monotonic() < deadline and not list(taps.glob("*/0-[1-9][0-9][0-9]*-6.npy")):
        time.sleep(0.05)
    assert first.poll() is None, "it was killed while it ran"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in taps.glob("*/*.npy")}
    assert kept
    assert not (tmp_path / "sweep" / "report.json").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert Cache(Location(str(taps))).names(next(iter(kept)).parent.name)
    assert "recommended:" in done.stdout


@pytest.fixture(scope="module")
def rotated(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """A sweep with an artifact that holds a rotation and an exit map at depth 3."""
    folder = tmp_path_factory.mktemp("rotated")
    write_corpus(folder, 200)
    resolved = resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig())
    rotation_WW = np.linalg.qr(np.random.default_rng(0).normal(size=(384, 384)))[0].astype(np.float32)
    made_up = make_up_exits(resolved)
    rows = [json.loads(line) for line in (folder / "corpus" / "a.jsonl").read_text().splitlines()[:50]]
    seen = np.unique(hash_texts([row["text"] for row in rows]))
    calibration = replace(made_up, maps={3: made_up.maps[3]}, rotation_WW=rotation_WW, fitted_texts=seen)
    write_calibration(calibration, str(folder / "calibration"))
    values = settings(folder, minilm, embedding={"model": minilm, "calibration": str(folder / "calibration")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedder.sweep.run.time_model", time_nothing)
        found = run_sweep(prepare_sweep(SweepConfig.model_validate(values | {"grid": {"depths": [6, 3], "dims": [384, 64]}})), quiet)
    write_report(found)
    return found


def test_views_in_the_full_models_space_are_also_tried_rotated_if_cut(rotated: SweepResult) -> None:
    tried = {(row.setting.depth, row.setting.exit, row.setting.dim, row.setting.query_side) for row in rotated.rows if row.setting.rotated}
    assert tried == {(6, "native", 64, "same"), (3, "calibrated", 64, "same"), (3, "calibrated", 64, "full")}
    assert "quality kept, int8, calibrated, rotated" in report_of(rotated).with_name("report.html").read_text()


def test_a_report_counts_the_documents_that_its_calibration_was_fitted_on(rotated: SweepResult) -> None:
    assert json.loads(report_of(rotated).read_text())["calibration"]["fitted_on"] == [50, 200]
    words = "fitted on 50 of the 200 documents that quality is measured on; unseen documents keep less"
    assert words in report_of(rotated).with_name("report.html").read_text()
    shown = io.StringIO()
    print_report(rotated, {"html": "report.html"}, Console(file=shown, width=200))
    assert f"calibration: {words}" in shown.getvalue()


@pytest.mark.parametrize(("depth", "query_side"), [(6, "same"), (3, "full")])
def test_the_score_of_a_rotated_row_equals_encoders_that_rotate(rotated: SweepResult, depth: int, query_side: str) -> None:
    [dataset] = rotated.plan.datasets
    assert isinstance(dataset, Retrieval)
    config = rotated.plan.config.embedding.model_copy(update={"depth": depth, "dim": 64, "rotate": True})
    resolved = resolve_model(config, rotated.plan.config.chunking)
    assert resolved.calibration is not None
    encoders = [
        Encoder.load(resolved.spec.for_queries(), dtype="float32", rotation_WW=resolved.rotation_WW),
        Encoder.load(resolved.spec, dtype="float32", calibration=resolved.calibration),
    ]
    queries, documents = (
        encoder.encode(tokenize(texts, resolved, resolved.spec), 4096).vectors_ND
        for encoder, texts in zip(encoders, (dataset.queries, dataset.documents), strict=True)
    )
    expected = score_retrieval(rank_documents(queries, documents, "float32", 100), dataset)[NDCG].mean()
    wanted = (depth, 64, "float32", query_side, True)
    [row] = [
        row
        for row in rotated.rows
        if (row.setting.depth, row.setting.dim, row.setting.precision, row.setting.query_side, row.setting.rotated) == wanted
    ]
    assert row.metrics["known items"][NDCG] == pytest.approx(expected, abs=1e-3)
    assert row.can_be_embedded


def test_the_config_and_the_gate_distinguish_a_rotated_setting(rotated: SweepResult) -> None:
    [row] = [each for each in rotated.rows if each.setting.rotated and each.setting.depth == 6 and each.setting.precision == "float32"]
    config = EmbedConfig.model_validate(yaml.safe_load(build_config(rotated.plan.config, row)))
    assert (config.embedding.rotate, config.embedding.dim) == (True, 64)
    spec = resolve_model(config.embedding, config.chunking).spec
    check_quality_gate(config, spec)
    [plain] = [
        each for each in rotated.rows
        if (each.setting.depth, each.setting.dim, each.setting.precision, each.setting.rotated) == (6, 64, "float32", False)
    ]  # fmt: skip
    assert plain.kept is not None
    assert row.kept is not None
    with pytest.raises(ConfigError, match=r"of another run \(rotation: "):
        check_quality_gate(config, spec.model_copy(update={"rotation": "of another"}))
    low, high = sorted((plain, row), key=lambda each: each.kept.floor if each.kept else 0)
    assert low.kept is not None
    assert high.kept is not None
    strict = config.model_copy(
        update={"gate": GateConfig(report=str(report_of(rotated)), min_quality=(low.kept.floor + high.kept.floor) / 2)}
    )
    with pytest.raises(ConfigError, match=f"rotated {low.setting.rotated}, float8 False keeps"):
        check_quality_gate(strict, spec if low.setting.rotated else spec.model_copy(update={"rotation": None}))
    check_quality_gate(strict, spec if high.setting.rotated else spec.model_copy(update={"rotation": None}))
