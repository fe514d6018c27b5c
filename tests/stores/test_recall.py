"""Codes find what exact float search finds: bits when rescored by float vectors, int8 as they are; over a table, and in the stores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedder.benchmark.encoder_and_job import tokenize_texts
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, StorageError
from embedder.core.quantization import Floats, Ranges, fit_ranges, quantize
from embedder.core.rotation import digest_array, fit_rotation, keep_rotation
from embedder.core.schema import QUARANTINE, table_schema
from embedder.core.spec import EmbeddingSpec, Quantization
from embedder.core.storage import Location
from embedder.core.units import PartName, Stats, task_key
from embedder.demo.corpus import read_documents
from embedder.model.encoder import Encoder
from embedder.model.resolve import resolve_model
from embedder.search.exact import Target, open_table
from embedder.search.rescore import rescored
from embedder.stores.config import LoadConfig
from embedder.stores.load import read_version, sync
from embedder.stores.open import open_loaded, open_store
from embedder.table.delta import Change, commit_table
from embedder.table.parts import footer_of, write_part
from embedder.table.vectors import vector_column

NUM_TEXTS, NUM_QUERIES, WANTED = 500, 80, 10
SHARDS = ("a.jsonl", "b.jsonl")


@dataclass(frozen=True)
class Sample:
    """Real texts with their vectors, and names that should find them."""

    spec: EmbeddingSpec
    texts: list[str]
    vectors_ND: Floats  # noqa: N815
    queries_QD: Floats  # noqa: N815

    def expected(self) -> list[set[str]]:
        """Rows that exact float search finds for each query."""
        order_QN = np.argsort(-(self.queries_QD @ self.vectors_ND.T), axis=1)[:, :WANTED]
        return [{f"d{number}" for number in row} for row in order_QN]


@pytest.fixture(scope="module")
def sample(minilm: str) -> Sample:
    documents = read_documents()[0][::6][:NUM_TEXTS]
    resolved = resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig(max_tokens=48))
    encoder = Encoder.load(resolved.spec)

    def embed(texts: Sequence[str]) -> Floats:
        return encoder.encode(tokenize_texts(texts, resolved)["token_ids"].combine_chunks(), 4096).vectors_ND

    texts = [f"{each.title} {each.text}" for each in documents]
    return Sample(resolved.spec, texts, embed(texts), embed([each.id for each in documents[:NUM_QUERIES]]))


def write_table(uri: str, sample: Sample, quantization: Quantization, ranges: Ranges | None = None, changes: Any = None) -> str:
    """Write the sample's rows as a table of two shards."""
    spec = sample.spec.model_copy(update={"quantization": quantization, **(changes or {})})
    schema = table_schema(pa.schema([]), True, quantization)
    vectors_ND = sample.vectors_ND[:, : spec.dim]
    parts = []
    for shard in SHARDS:
        numbers = [number for number in range(NUM_TEXTS) if SHARDS[number % len(SHARDS)] == shard]
        columns: dict[str, Any] = {
            "doc_id": [f"d{number}" for number in numbers], "chunk": [0] * len(numbers), "num_chunks": [1] * len(numbers),
            "start_char": [0] * len(numbers), "end_char": [len(sample.texts[number]) for number in numbers],
            "num_tokens": [9] * len(numbers),
            "text": [sample.texts[number] for number in numbers], "content_hash": [str(number) for number in numbers],
            "shard": [shard] * len(numbers), "row": list(range(len(numbers))),
            "embedding": vector_column(quantize(vectors_ND[numbers], quantization, ranges)),
        }  # fmt: skip
        name = PartName(task_key("shard", shard), "0" * 32, 0, len(numbers), True)
        stats = Stats(documents=len(numbers), chunks=len(numbers))
        rows = pa.table(columns).cast(schema)
        parts.append(write_part(rows, QUARANTINE.empty_table(), name, footer_of(spec, stats, ranges), Location(uri)))
    info = {"spec": spec.model_dump(), "space_id": spec.space_id, "bucket_bits": 0, "ranges": ranges.record() if ranges else None}
    commit_table(Location(uri), Change(tuple(parts), (), schema, info, False), None)
    return uri


@pytest.fixture(scope="module")
def floats(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_table(str(tmp_path_factory.mktemp("floats") / "table"), sample, "none")


def recall(target: Target, sample: Sample) -> float:
    """Return the share of exact float search that is found, over all queries."""
    found = [{hit.row["doc_id"] for hit in target.find(query, WANTED, None)} for query in sample.queries_QD]
    return float(np.mean([len(mine & wanted) / WANTED for mine, wanted in zip(found, sample.expected(), strict=True)]))


def test_bits_over_a_table_find_most_and_rescored_nearly_all(sample: Sample, floats: str, tmp_path: Path) -> None:
    bits = open_table(Location(write_table(str(tmp_path / "bits"), sample, "binary")))
    assert recall(bits, sample) > 0.7
    assert recall(rescored(bits, Location(floats)), sample) >= 0.95
    hits = rescored(bits, Location(floats)).find(sample.queries_QD[0], WANTED, None)
    scores = [float(sample.vectors_ND[int(hit.row["doc_id"][1:])] @ sample.queries_QD[0]) for hit in hits]
    assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-5)
    assert scores == sorted(scores, reverse=True)


def test_a_smaller_dim_is_rescored_by_the_larger_one(sample: Sample, floats: str, tmp_path: Path) -> None:
    small = write_table(str(tmp_path / "small"), sample, "binary", changes={"dim": 128})
    assert recall(rescored(open_table(Location(small)), Location(floats)), sample) >= 0.9


@pytest.mark.parametrize(("kind", "quantization"), [("lance", "binary"), ("pgvector", "binary"), ("duckdb", "int8")])
def test_codes_in_a_store_find_what_exact_float_search_finds(
    kind: str, quantization: Quantization, sample: Sample, floats: str, tmp_path: Path, section_of: Callable[[str], dict[str, Any]]
) -> None:
    ranges = fit_ranges(sample.vectors_ND) if quantization == "int8" else None
    uri = write_table(str(tmp_path / "codes"), sample, quantization, ranges)
    config = LoadConfig.model_validate({"table": {"uri": uri}, **section_of(kind)})
    with open_store(config) as store:
        sync(store, read_version(Location(uri)))
    with open_loaded(config) as target:
        if quantization == "int8":
            assert recall(target, sample) >= 0.97
        assert recall(rescored(target, Location(floats)), sample) >= 0.95


def test_turned_codes_are_rescored_by_vectors_that_were_not(sample: Sample, floats: str, tmp_path: Path) -> None:
    rotation_WW = fit_rotation(np.cov(sample.vectors_ND.T))
    turned = replace(sample, vectors_ND=sample.vectors_ND @ rotation_WW)
    changes = {"dim": 64, "rotation": digest_array(rotation_WW)}
    bits = write_table(str(tmp_path / "bits"), turned, "binary", changes=changes)
    with pytest.raises(StorageError, match="not found, and queries need the rotation"):
        rescored(open_table(Location(bits)), Location(floats))
    keep_rotation(rotation_WW, Location(bits))
    assert recall(rescored(open_table(Location(bits)), Location(floats)), sample) > 0.8


def test_a_table_that_the_codes_were_not_made_from_is_refused(sample: Sample, floats: str, tmp_path: Path) -> None:
    bits_uri = write_table(str(tmp_path / "bits"), sample, "binary")
    bits = open_table(Location(bits_uri))
    with pytest.raises(ConfigError, match="holds binary codes; give the table with float vectors"):
        rescored(bits, Location(bits_uri))
    small = write_table(str(tmp_path / "small"), sample, "none", changes={"dim": 64})
    with pytest.raises(ConfigError, match="holds 64 components, fewer than the 384 searched"):
        rescored(bits, Location(small))
    other = write_table(str(tmp_path / "other"), sample, "none", changes={"depth": 3})
    with pytest.raises(ConfigError, match="is of another space"):
        rescored(bits, Location(other))
