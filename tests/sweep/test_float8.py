"""Layers in float8 are separate rows with their own quality; emulated speeds do not count, and the gate distinguishes them."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from embedder.benchmark.exit_cost import make_up_exits
from embedder.config.embed import EmbedConfig, GateConfig
from embedder.core.errors import ConfigError
from embedder.model.calibration import write_calibration
from embedder.model.encoder import Encoder
from embedder.model.resolve import resolve_model
from embedder.run.quality_gate import check_quality_gate
from embedder.sweep.candidates import Transformer, tokenize
from embedder.sweep.config import SweepConfig
from embedder.sweep.cost import ExitVariant, Speed
from embedder.sweep.datasets import Retrieval
from embedder.sweep.metrics import NDCG, score_retrieval
from embedder.sweep.prepare import prepare_sweep
from embedder.sweep.recommend import Row, find_front
from embedder.sweep.report import build_config, print_report, write_report
from embedder.sweep.retrieval import rank_documents
from embedder.sweep.run import SweepResult, run_sweep
from tests.sentences import quiet
from tests.sweep.test_run import report_of, settings, write_corpus

pytestmark = [pytest.mark.real, pytest.mark.slow]

GRID = {"depths": [6, 3], "dims": [384, 64], "precisions": ["float32", "int8"], "float8": True}


@pytest.fixture(scope="module")
def swept(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """A sweep in float32 and float8, with an exit map at depth 3."""
    folder = tmp_path_factory.mktemp("float8")
    write_corpus(folder, 110)  # emulated, a forward pass takes several times as long
    plain = SweepConfig.model_validate(settings(folder, minilm))
    made_up = make_up_exits(resolve_model(plain.embedding, plain.chunking))
    write_calibration(replace(made_up, maps={3: made_up.maps[3]}), str(folder / "calibration"))
    embedding = {"model": minilm, "calibration": str(folder / "calibration")}
    found = run_sweep(prepare_sweep(SweepConfig.model_validate(settings(folder, minilm, embedding=embedding, grid=GRID))), quiet)
    write_report(found)
    return found


def find_row(swept: SweepResult, float8: bool, depth: int = 6, dim: int = 384, exit_: str = "native", query_side: str = "same") -> Row:
    wanted = (depth, dim, "float32", exit_, query_side, float8)
    [row] = [
        row
        for row in swept.rows
        if (row.setting.depth, row.setting.dim, row.setting.precision, row.setting.exit, row.setting.query_side, row.setting.float8)
        == wanted
    ]
    return row


def test_every_setting_is_tried_with_and_without_float8(swept: SweepResult) -> None:
    ways = [{replace(row.setting, float8=False) for row in swept.rows if row.setting.float8 == float8} for float8 in (False, True)]
    assert ways[0] == ways[1]
    assert len(swept.rows) == 2 * (4 + 2 * 8)
    assert not swept.full.setting.float8
    coarse = find_row(swept, True)
    assert 0.99 < coarse.metrics["fidelity"]["cosine to full"] < 0.9995
    assert coarse.cost.model_bytes is not None
    assert coarse.cost.model_bytes < (find_row(swept, False).cost.model_bytes or 0)


@pytest.mark.parametrize(("depth", "exit_", "query_side"), [(6, "native", "same"), (3, "native", "same"), (3, "calibrated", "full")])
def test_the_score_of_a_row_equals_float8_documents_and_exact_queries(swept: SweepResult, depth: int, exit_: str, query_side: str) -> None:
    [dataset] = swept.plan.datasets
    assert isinstance(dataset, Retrieval)
    wanted: dict[str, Any] = {"depth": depth, "float8": True}
    embedding = swept.plan.config.embedding.model_copy(update=wanted | ({} if exit_ == "calibrated" else {"calibration": None}))
    resolved = resolve_model(embedding, swept.plan.config.chunking)
    assert resolved.spec.exit == exit_
    encoders = [Encoder.load(resolved.spec.for_queries(), dtype="float32"), Encoder.load(resolved.spec, calibration=resolved.calibration)]
    queries, documents = (
        encoder.encode(tokenize(texts, resolved, resolved.spec), 2048).vectors_ND
        for encoder, texts in zip(encoders, (dataset.queries, dataset.documents), strict=True)
    )
    expected = score_retrieval(rank_documents(queries, documents, "float32", 100), dataset)[NDCG].mean()
    row = find_row(swept, True, depth, exit_=exit_, query_side=query_side)
    # at fewer dims the rounding of bfloat16, which differs by processor, swaps ranks
    assert row.metrics["known items"][NDCG] == pytest.approx(expected, abs=2e-3)
    assert row.can_be_embedded


def test_an_emulated_speed_is_neither_shown_nor_compared(swept: SweepResult, capsys: pytest.CaptureFixture[str]) -> None:
    assert {row.cost.is_emulated for row in swept.rows if row.setting.float8} == {True}
    assert not any(row.cost.is_emulated for row in swept.rows if not row.setting.float8)
    assert not any(row.setting.float8 for row in find_front(swept.rows, swept.full))
    assert swept.chosen is not None
    assert not swept.chosen.setting.float8
    page = report_of(swept).with_name("report.html").read_text()
    assert "were emulated on this CPU" in page
    assert "quality kept, int8, calibrated, layers in float8" in page
    print_report(swept, {"html": "report.html"}, Console(width=200))
    shown = capsys.readouterr().out
    [line] = [line for line in shown.splitlines() if "depth 6 × dim 384 float32, layers in float8" in line]
    assert line.count("emulated") == 2
    assert "×  " not in line.split("float8")[1]
    assert "were emulated on this CPU" in shown.replace("\n", " ")


def test_the_files_distinguish_float8(swept: SweepResult) -> None:
    rows = json.loads(report_of(swept).read_text())["rows"]
    with report_of(swept).with_name("report.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [row["setting"]["float8"] for row in rows] == [line["float8"] == "True" for line in lines]
    assert [row["cost"]["is_emulated"] for row in rows] == [line["is_emulated"] == "True" for line in lines]


def test_the_config_and_the_gate_distinguish_float8(swept: SweepResult) -> None:
    coarse, plain = (find_row(swept, float8) for float8 in (True, False))
    config = EmbedConfig.model_validate(yaml.safe_load(build_config(swept.plan.config, coarse)))
    assert config.embedding.float8
    assert config.compute.dtype == "auto", "float8 does not compute in the sweep's float32"
    spec = resolve_model(config.embedding, config.chunking).spec
    assert coarse.kept is not None
    assert plain.kept is not None
    for float8, row in ((True, coarse), (False, plain)):
        assert row.kept is not None
        for min_quality, is_enough in ((row.kept.floor - 1e-6, True), (row.kept.floor + 1e-6, False)):
            # validation refuses a gate above 1, the full model's share
            gate = GateConfig.model_construct(report=str(report_of(swept)), min_quality=min_quality)
            arguments = config.model_copy(update={"gate": gate}), spec.model_copy(update={"float8": float8})
            if is_enough:
                check_quality_gate(*arguments)
            else:
                with pytest.raises(ConfigError, match=f"float8 {float8} keeps"):
                    check_quality_gate(*arguments)


def test_an_older_report_has_no_float8_rows(swept: SweepResult, tmp_path: Path) -> None:
    record = json.loads(report_of(swept).read_text())
    record["rows"] = [
        row | {"setting": {k: v for k, v in row["setting"].items() if k != "float8"}}
        for row in record["rows"]
        if not row["setting"]["float8"]
    ]
    del record["spec"]["float8"]
    (tmp_path / "report.json").write_text(json.dumps(record))
    config = EmbedConfig.model_validate(yaml.safe_load(build_config(swept.plan.config, find_row(swept, False))))
    config = config.model_copy(update={"gate": GateConfig(report=str(tmp_path / "report.json"), min_quality=0.9)})
    spec = resolve_model(config.embedding, config.chunking).spec
    check_quality_gate(config, spec)
    with pytest.raises(ConfigError, match=r"holds no row for .*float8 True"):
        check_quality_gate(config, spec.model_copy(update={"float8": True}))


def test_adding_float8_runs_only_the_documents_again(swept: SweepResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tapped: list[tuple[bool, str]] = []
    tap = Transformer._tap

    def watch(model: Transformer, key: str, *args: Any) -> None:
        tapped.append((model.spec.float8, key))
        tap(model, key, *args)

    def time_nothing(encoders: Mapping[ExitVariant, Encoder], *_: object) -> dict[str, dict[ExitVariant, Speed]]:
        return {"": {exit_: Speed(1000.0, 1.0, 1) for exit_ in encoders}}

    monkeypatch.setattr(Transformer, "_tap", watch)
    monkeypatch.setattr("embedder.sweep.run.measure_speeds", time_nothing)
    config = swept.plan.config
    again = run_sweep(prepare_sweep(config), quiet)
    assert tapped == []
    assert [row.metrics for row in again.rows] == [row.metrics for row in swept.rows]
    elsewhere = config.model_copy(update={"output": config.output.model_copy(update={"uri": str(tmp_path)})})
    run_sweep(prepare_sweep(elsewhere.model_copy(update={"grid": config.grid.model_copy(update={"float8": False})})), quiet)
    plain = len(tapped)
    assert not any(float8 for float8, _ in tapped)
    run_sweep(prepare_sweep(elsewhere), quiet)
    assert [float8 for float8, _ in tapped[plain:]] == [True], "queries are never in float8"


def test_settings_incompatible_with_float8_are_refused(tmp_path: Path, minilm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path, 40)
    for sections, named in (
        ({"embedding": {"model": "m", "float8": True}}, "set grid.float8"),
        ({"grid": {"float8": True}, "compute": {"backend": "openvino"}}, r"leave it out, or grid\.float8"),
        ({"baselines": [{"model": "m2", "float8": True}]}, "leave out .*float8"),
    ):
        with pytest.raises(ValueError, match=named):
            SweepConfig.model_validate(settings(tmp_path, "m", **sections))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(ConfigError, match=r"compute capability 8\.6"):
        prepare_sweep(SweepConfig.model_validate(settings(tmp_path, minilm, grid=GRID, compute={"device": "cuda"})))
