"""A run measures what it embeds behind a calibrated exit: drift of the corpus is a warning, and below the gate nothing is published."""

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedder.calibrate.collect import Collected, Extremes
from embedder.calibrate.drift import expect_fidelity
from embedder.calibrate.fit import fit_exits
from embedder.calibrate.ridge import Moments, Rows
from embedder.calibrate.run import choose_features, resolve_whole
from embedder.config.embed import EmbedConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core import plan
from embedder.core.errors import CommitError, StorageError
from embedder.core.fidelity import SAMPLE_CHUNKS
from embedder.core.storage import Location
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.calibration import DESCRIPTION, Calibration, fitted_for, write_calibration
from embedder.model.encoder import Encoder
from embedder.model.results import ExitStates
from embedder.run import drift
from embedder.run.embed import run_embed
from embedder.run.prepare import prepare_run
from embedder.run.summary import Summary
from embedder.table.delta import read_table
from embedder.table.history import lay_out, read_history
from embedder.table.kept_samples import SAMPLES_FOLDER
from embedder.text.chunking import chunk_documents
from embedder.text.token_idf import count_tokens, weigh_tokens
from embedder.text.tokenizing import load_tokenizer
from tests.golden.models import VOCABULARY, write_run_model

NUM_FITTED, NUM_HELD_OUT, SIZE = 400, 200, 16
LETTERS, WORDS = VOCABULARY[:40], VOCABULARY[-16:]
CHUNKING = {"max_tokens": 24}


def draw_texts(count: int, words: list[str], seed: int = 0) -> list[str]:
    shuffle = random.Random(seed)
    return [" ".join(shuffle.choices(words, k=shuffle.randint(4, 18))) for _ in range(count)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, and a calibration of its first one on texts of words."""
    folder = tmp_path_factory.mktemp("drift")
    write_run_model(folder / "model")
    model = resolve_whole(EmbeddingConfig(model=str(folder / "model")), ChunkingConfig(**CHUNKING))
    texts = pa.table({"text": draw_texts(NUM_FITTED + NUM_HELD_OUT, WORDS)})
    token_ids = chunk_documents(texts, load_tokenizer(model.tokenizer_json), model.spec)["token_ids"].combine_chunks()
    pooling = start_attention_pooling(weigh_tokens(count_tokens(token_ids, model.vocab_size), len(token_ids)), 2, SIZE)
    features = choose_features((1, 2), model, 4)
    tapped = Encoder.load(model.spec, dtype="float32").tap_exits(token_ids, 1024, features.tapped, (1, 2), pooling)
    rows = Rows(tmp_path_factory.mktemp("rows"), len(features.tapped), features.block, SIZE)
    rows.add(tapped.states_NF[:NUM_FITTED], tapped.full_NW[:NUM_FITTED], NUM_FITTED)
    native = {depth: vectors[NUM_FITTED:] for depth, vectors in tapped.native.items()}
    held_out = ExitStates(tapped.states_NF[NUM_FITTED:], native, tapped.full_NW[NUM_FITTED:])
    maps, _ = fit_exits(rows, held_out, features, (0.01, 0.1))
    extremes, rotation = Extremes((8, SIZE), normalize=True), np.eye(SIZE, dtype=np.float32)
    mapped = tapped.states_NF[:, features.columns(1)] @ maps[1].weight_FW + maps[1].bias_W
    for rotated in (False, True):
        extremes.add("calibrated", 1, mapped, rotated)
    figures = expect_fidelity(Collected(features, rows, Moments(SIZE), held_out, None, extremes), maps, rotation, seed=0)
    record = {"fidelity": json.loads(json.dumps(figures, default=lambda each: {n: getattr(each, n) for n in each.__slots__}))}
    calibration = Calibration(fitted_for(model.spec), 2, pooling, maps, extremes.ranges, record, rotation)
    write_calibration(calibration, str(folder / "calibration"))
    return folder


class Site:
    """A corpus of texts, and its table."""

    def __init__(self, place: Path, folder: Path) -> None:
        self.place, self.folder = place, folder

    def put(self, name: str, texts: list[str]) -> None:
        (self.folder / "corpus").mkdir(exist_ok=True)
        lines = [json.dumps({"id": f"{name}-{number}", "text": text}) for number, text in enumerate(texts)]
        (self.folder / "corpus" / f"{name}.jsonl").write_text("\n".join(lines))

    def embed(self, calibration: str = "calibration", gate: float | None = None, **sections: dict[str, Any]) -> Summary:
        values: dict[str, Any] = {
            "source": {"uri": str(self.folder / "corpus"), "id_column": "id", "rows_per_unit": 30},
            "chunking": CHUNKING,
            "embedding": {"model": str(self.place / "model"), "depth": 1, "calibration": str(self.place / calibration)},
            "compute": {"device": "cpu", "dtype": "float32", "backend": "torch"},
            "output": {"uri": str(self.folder / "table")},
            "gate": None if gate is None else {"min_fidelity": gate},
        }
        config = {name: value | sections.get(name, {}) if value else value for name, value in values.items()}
        return run_embed(prepare_run(EmbedConfig.model_validate(config)))

    @property
    def version(self) -> int | None:
        table = read_table(Location(str(self.folder / "table")))
        return table.version if table else None

    @property
    def history(self) -> str:
        return lay_out(read_history(Location(str(self.folder / "table")), 20))


@pytest.fixture
def site(place: Path, tmp_path: Path) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("embedder"), "propagate", True)
        yield Site(place, tmp_path)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "embedder" and record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    "embedding", [{}, {"dim": 8, "rotate": True, "quantization": "int8"}, {"dim": 8, "quantization": "binary"}], ids=str
)
def test_other_texts_of_the_same_kind_have_not_drifted(site: Site, embedding: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    site.put("a", draw_texts(150, WORDS, seed=1))
    measured = site.embed(embedding=embedding).fidelity
    assert measured is not None
    assert measured.expected is not None
    assert measured.chunks == SAMPLE_CHUNKS
    assert measured.cosine == pytest.approx(measured.expected.cosine.mean, abs=4 * measured.expected.cosine.deviation)
    assert not measured.drifted
    assert not warnings_of(caplog)


def test_texts_of_another_kind_are_published_with_a_warning_in_log_summary_and_history(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.put("a", draw_texts(60, WORDS, seed=1))
    assert not site.embed().text().count("drifted")
    site.put("b", draw_texts(150, LETTERS))
    summary = site.embed()
    assert summary.fidelity is not None
    assert summary.fidelity.drifted
    [warning] = warnings_of(caplog)
    for text in (warning, summary.text()):
        assert f"cosine {summary.fidelity.cosine:.3f} (held out " in text
        assert "calibrate again on the present corpus" in text
    assert summary.record()["fidelity"]["cosine"] == summary.fidelity.cosine
    newest, older = (line for line in site.history.splitlines() if "fidelity: " in line)
    assert "drifted" in newest
    assert "drifted" not in older
    (site.folder / "corpus" / "b.jsonl").unlink()
    removed = site.embed(output={"max_removed_fraction": 1})
    assert (removed.version, removed.fidelity) == (2, None), "no chunk was embedded"


def test_a_gate_refuses_until_it_is_lowered_and_the_parts_are_adopted(site: Site) -> None:
    site.put("a", draw_texts(150, LETTERS))
    refusals = []
    for _ in range(2):  # the second run embeds nothing, and must not publish what the first one refused
        with pytest.raises(
            CommitError,
            match=r"^gate\.min_fidelity=0\.99: the sample of this run has cosine 0\.\d+ .* nothing was published; .* lower the gate",
        ) as refused:
            site.embed(gate=0.99)
        refusals.append(str(refused.value))
        assert site.version is None
    assert refusals[0] == refusals[1]
    summary = site.embed(gate=0.1)
    assert (summary.parts_adopted, summary.stats.chunks, summary.version) == (5, 0, 0)
    assert summary.fidelity is not None
    assert f"cosine {summary.fidelity.cosine:.3f}" in refusals[0]


def test_a_gate_refuses_adopted_parts_without_a_sample_and_any_other_run_publishes_them(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.put("a", draw_texts(40, WORDS))
    with pytest.raises(CommitError, match=r"^gate\.min_fidelity=1"):
        site.embed(gate=1)
    [sample] = (site.folder / "table" / SAMPLES_FOLDER).glob("*")
    kept = sample.read_bytes()
    sample.write_bytes(kept[:100])
    with pytest.raises(StorageError, match=r"a damaged sample of a run that was refused .*; delete it"):
        site.embed(gate=0.1)
    sample.unlink()  # as after a run that was killed
    with pytest.raises(CommitError, match=r"not measured, a run that died embedded the 2 parts .*; nothing was published; delete"):
        site.embed(gate=0.1)
    assert not warnings_of(caplog)
    assert site.embed().fidelity is None
    assert "not measured, a run that died embedded the 2 parts" in warnings_of(caplog)[-1]
    assert site.version == 0


def test_a_gate_judges_before_the_first_shard_is_published(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SMALL_SHARD_BYTES", 0)
    for name in "abc":
        site.put(name, draw_texts(40, LETTERS, seed=ord(name)))
    often = {"publish_every": "1 rows"}
    with pytest.raises(CommitError, match=r"^gate\.min_fidelity=0\.99: .* on 40 chunks.* nothing was published"):
        site.embed(gate=0.99, output=often)
    assert site.version is None
    summary = site.embed(gate=0.1, output=often)
    assert summary.version == site.version
    assert summary.version is not None
    assert summary.version > 0
    assert summary.fidelity is not None
    assert summary.fidelity.chunks == SAMPLE_CHUNKS


@pytest.mark.parametrize("gate", [None, 0.1])
def test_a_full_model_that_does_not_run_is_a_warning_or_the_gate_refuses(
    site: Site, gate: float | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Iterator[np.ndarray]:
        raise MemoryError("no room for 12 layers")

    monkeypatch.setattr(drift, "encode_full", fail)
    site.put("a", draw_texts(40, WORDS))
    if gate is None:
        assert site.embed().fidelity is None
        assert "not measured, the full model did not run (no room for 12 layers)" in warnings_of(caplog)[0]
    else:
        with pytest.raises(CommitError, match=r"the full model did not run \(no room for 12 layers\); nothing was published"):
            site.embed(gate=gate)
        assert site.version is None


def test_an_artifact_of_earlier_code_is_used_without_a_warning(
    site: Site, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for path in (place / "calibration").iterdir():
        (old / path.name).write_bytes(path.read_bytes())
    description = json.loads((old / DESCRIPTION).read_text())
    (old / DESCRIPTION).write_text(json.dumps(description | {"record": {}}))
    site.put("a", draw_texts(150, LETTERS))
    summary = site.embed(calibration=str(old))
    assert summary.fidelity is not None
    assert (summary.fidelity.expected, summary.fidelity.drifted) == (None, False)
    assert "the calibration has no held-out figures for such vectors" in summary.text()
    assert not warnings_of(caplog)


def test_other_runs_measure_nothing(site: Site) -> None:
    site.put("a", draw_texts(40, WORDS))
    summary = site.embed(embedding={"calibration": None})
    assert summary.fidelity is None
    assert "fidelity" not in summary.text()
    assert not (site.folder / "table" / SAMPLES_FOLDER).exists()
