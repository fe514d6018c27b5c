"""Chunkings as rows of a sweep: a document ranks by its best chunk, and its chunks are the cost."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from embedder.config.embed import EmbedConfig
from embedder.config.embedding import ChunkingConfig
from embedder.core.errors import ConfigError
from embedder.model.encoder import Encoder
from embedder.model.late_chunking import Spans, read_passes
from embedder.model.resolve import resolve_model
from embedder.run.quality_gate import check_quality_gate
from embedder.sweep.candidates import Chunks
from embedder.sweep.config import SweepConfig
from embedder.sweep.cost import ExitVariant, Speed, measure_speeds
from embedder.sweep.datasets import Retrieval
from embedder.sweep.metrics import NDCG, score_retrieval
from embedder.sweep.prepare import prepare_sweep
from embedder.sweep.recommend import Row
from embedder.sweep.report import build_config, write_report
from embedder.sweep.retrieval import rank_documents
from embedder.sweep.run import SweepResult, run_sweep
from embedder.text.chunking import chunk_documents
from embedder.text.tokenizing import load_tokenizer
from tests.sentences import quiet, sentence

LATE: dict[str, Any] = {"name": "late", "max_tokens": 24, "late": True}
TITLED: dict[str, Any] = {"name": "titled", "max_tokens": 48, "template": "{heading|none}\n{chunk}"}


def settings(folder: Path | str, **sections: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "source": {"uri": f"{folder}/corpus", "id_column": "id", "metadata_columns": {"heading": "title"}},
        "chunking": {"max_tokens": 48},
        "embedding": {"model": "m"},
        "grid": {
            "depths": [6],
            "dims": [384],
            "precisions": ["float32", "binary_rescored"],
            "chunkings": [{"max_tokens": 24}, TITLED, LATE],
        },
        "sample": {"documents": 110, "queries": 40},
        "compute": {"dtype": "float32"},
        "output": {"uri": f"{folder}/sweep"},
    }
    return values | sections


@pytest.fixture(scope="module")
def swept(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SweepResult]:
    """The first sentence of a text, its query, is its title too; the rest of the texts is much alike."""
    folder = tmp_path_factory.mktemp("chunkings")
    (folder / "corpus").mkdir()
    titles = [sentence(n + 500) for n in range(110)]
    rests = [" ".join(sentence((n + part) % 9) for part in range(n % 3 + 1)) for n in range(110)]
    rows = [{"id": f"d{n}", "title": titles[n] if n else None, "text": f"{titles[n]} {rests[n]}"} for n in range(110)]
    (folder / "corpus" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def time_nothing(encoders: Mapping[ExitVariant, Encoder], cut: Mapping[str, Chunks], _: int) -> dict[str, Any]:
        return {name: {variant: Speed(1000.0, 1.0, 1) for variant in encoders} for name in cut}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedder.sweep.run.measure_speeds", time_nothing)
        found = run_sweep(prepare_sweep(SweepConfig.model_validate(settings(folder, embedding={"model": minilm}))), quiet)
        write_report(found)
        yield found


def rows_of(swept: SweepResult, precision: str = "float32") -> dict[str, Row]:
    return {row.setting.chunking: row for row in swept.rows if row.setting.precision == precision}


@pytest.mark.real
def test_every_chunking_has_its_rows_and_the_chunks_and_tokens_of_its_documents(swept: SweepResult) -> None:
    rows = rows_of(swept)
    assert list(rows) == ["max_tokens=48", "max_tokens=24", "titled", "late"]
    assert len(swept.rows) == 8
    assert (swept.full.setting.chunking, swept.corpus.documents) == ("max_tokens=48", 110)
    for model in swept.plan.models:
        spec, cost = model.resolved.spec, rows[model.chunking].cost
        assert swept.plan.sample is not None
        chunks = chunk_documents(swept.plan.sample.documents, load_tokenizer(model.resolved.tokenizer_json), spec)
        assert cost.chunks_per_document * 110 == pytest.approx(chunks.num_rows)
        assert cost.tokens_per_document * 110 == pytest.approx(len(chunks["token_ids"].combine_chunks().flatten()))
        assert cost.index_bytes == chunks.num_rows * 384 * 4
    assert rows["late"].cost.chunks_per_document == rows["max_tokens=24"].cost.chunks_per_document
    assert rows["late"].cost.tokens_per_document < rows["max_tokens=24"].cost.tokens_per_document, "special tokens once a pass"
    assert rows["max_tokens=24"].cost.chunks_per_document > 1.3 * rows["max_tokens=48"].cost.chunks_per_document


@pytest.mark.real
def test_a_document_ranks_by_its_best_chunk(swept: SweepResult) -> None:
    [dataset] = swept.plan.datasets
    assert isinstance(dataset, Retrieval)
    titles = [title or None for title in swept.plan.columns["context:heading|"].to_pylist()] if swept.plan.columns else []
    for model in swept.plan.models[1:]:
        resolved = model.resolved
        documents = pa.table({"text": dataset.documents, "context:heading|": pa.array(titles, pa.string())})
        chunks = chunk_documents(documents, load_tokenizer(resolved.tokenizer_json), resolved.spec)
        asked = chunk_documents(pa.table({"text": dataset.queries}), load_tokenizer(resolved.tokenizer_json), resolved.spec.for_queries())
        encoder = Encoder.load(resolved.spec, dtype="float32")
        (token_ids, spans), owners = read_passes(chunks), chunks["document"].to_numpy()
        chunks_CD = encoder.encode(token_ids, 4096, spans).vectors_ND
        queries_QD = encoder.encode(asked["token_ids"].combine_chunks(), 4096).vectors_ND
        scores_QC = queries_QD @ chunks_CD.T
        best_QD = np.stack([scores_QC[:, owners == document].max(axis=1) for document in range(110)], axis=1)
        ranked = rank_documents(best_QD, np.eye(110, dtype=np.float32), "float32", 100)
        expected = score_retrieval(ranked, dataset)[NDCG].mean()
        assert rows_of(swept)[model.chunking].metrics["known items"][NDCG] == pytest.approx(expected, abs=1e-3)


@pytest.mark.real
def test_a_title_on_every_chunk_shows_in_the_quality_kept(swept: SweepResult) -> None:
    for precision in ("float32", "binary_rescored"):
        titled = rows_of(swept, precision)["titled"]
        assert titled.kept is not None
        assert titled.kept.floor > 1.2
        assert rows_of(swept)["titled"].metrics["fidelity"]["cosine to full"] == pytest.approx(1, abs=1e-5), "of the same chunking"


@pytest.mark.real
def test_every_file_of_the_report_names_the_chunking(swept: SweepResult) -> None:
    folder = Path(swept.plan.config.output.uri)
    with (folder / "report.csv").open() as file:
        assert {line["chunking"] for line in csv.DictReader(file)} == set(rows_of(swept))
    assert {row["setting"]["chunking"] for row in json.loads((folder / "report.json").read_text())["rows"]} == set(rows_of(swept))
    page = (folder / "report.html").read_text()
    assert all(text in page for text in ("<th scope=col>chunking</th>", "<td>titled</td>", "chunks/doc", "float32, titled: keeps"))


@pytest.mark.real
def test_the_config_of_every_chunking_passes_its_own_gate_and_another_chunking_does_not(swept: SweepResult) -> None:
    for row in rows_of(swept).values():
        config = EmbedConfig.model_validate(yaml.safe_load(build_config(swept.plan.config, row)))
        check_quality_gate(config, resolve_model(config.embedding, config.chunking).spec)
    other = resolve_model(config.embedding, ChunkingConfig(max_tokens=48, template="{heading}: {chunk}")).spec
    with pytest.raises(ConfigError, match=r"of another run \(template: .*heading\|none"):
        check_quality_gate(config, other)


@pytest.mark.real
def test_chunkings_that_do_not_fit_the_model_or_cut_alike_are_refused(tmp_path: Path, minilm: str) -> None:
    chunkings = [{"name": "whole", "max_tokens": 256}, {"name": "long", "max_tokens": 9999}, {"name": "narrow", "overlap_tokens": 255}]
    grid = {"chunkings": chunkings}
    with pytest.raises(ConfigError) as caught:
        prepare_sweep(SweepConfig.model_validate(settings(tmp_path, embedding={"model": minilm}, chunking={}, grid=grid)))
    message = str(caught.value)
    assert "grid.chunkings: 'whole' cuts as 'default' does; leave one of the two out" in message
    assert "grid.chunkings: 'long': chunking.max_tokens=9999: " in message
    assert "grid.chunkings: 'narrow': chunking.overlap_tokens=255: " in message


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"grid": {"chunkings": [{"max_token": 9}]}}, "Extra inputs are not permitted"),
        ({"grid": {"chunkings": [{"min_tokens": 9, "enabled": False}]}}, "min_tokens=9: has no effect with enabled=false"),
        ({"grid": {"chunkings": [{"max_tokens": 48}]}}, "'max_tokens=48' names two chunkings, that of chunking included"),
        ({"grid": {"chunkings": [TITLED, {"name": "titled"}]}}, "'titled' names two chunkings"),
        ({"grid": {"chunkings": [{"tokenizer": "m"}]}}, "chunking.tokenizer='m': is for models named openai:NAME"),
        (
            {"grid": {}, "chunking": {"max_tokens": 32, "late": True}},
            "chunking.late=true: without grid.chunkings a sweep embeds a document",
        ),
        ({"grid": {"chunkings": [LATE]}, "compute": {"backend": "openvino"}}, "compute.backend=openvino: does not pool by chunks"),
        ({"grid": {}, "chunking": {"template": "{title}{chunk}"}}, "without grid.chunkings a sweep embeds texts without their columns"),
        ({"baselines": [{"model": "m2"}]}, "cuts are compared for one model; leave out baselines"),
        ({"quality": {"sts": ["a.csv"]}}, "score whole texts, which no chunking cuts"),
        ({"embedding": {"model": "m", "calibration": "c"}}, "embedding.calibration is fitted for one chunking"),
        ({"quality": {"beir": ["b"]}}, "{heading}: documents of quality.beir have no columns"),
        ({"quality": {"query_column": "title"}}, "{heading} shows known-item queries, made of quality.query_column='title'"),
        ({"source": {"uri": "s", "text_columns": ["heading", "text"]}}, "{heading} shows known-item queries, made of source.text_columns"),
    ],
)
def test_a_study_of_chunkings_that_would_show_nothing_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepConfig.model_validate(settings("f", **sections))


def test_every_encoder_is_timed_on_the_chunks_of_every_chunking() -> None:
    class Counting:
        weight_bytes, device_type = 7, "cpu"

        def encode(self, token_ids: pa.ListArray, _: int, spans: Spans | None) -> None:
            lengths.add((len(token_ids), spans and len(spans.lengths_N)))

    lengths: set[tuple[int, int | None]] = set()
    ids, two = {rows: pa.array([[1, 2]] * rows, pa.list_(pa.int32())) for rows in (5, 9)}, np.full(10, 1, np.int32)
    late = Spans(np.arange(0, 11, 2), two, two)
    cut = {"a": Chunks(ids[5], np.arange(5), late), "b": Chunks(ids[9], np.arange(9))}
    encoders: dict[ExitVariant, Any] = {ExitVariant(depth, "native"): Counting() for depth in (6, 3)}
    speeds = measure_speeds(encoders, cut, 16)
    assert lengths == {(5, 10), (9, None)}
    assert {name: set(each) for name, each in speeds.items()} == {"a": set(encoders), "b": set(encoders)}
    assert speeds["b"][ExitVariant(6, "native")].speedup == 1
