"""Tables with metadata of every type, made without a model, and every store that a load can go to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedder.core.quantization import Ranges, quantize
from embedder.core.schema import QUARANTINE, table_schema
from embedder.core.spec import EmbeddingSpec, digest
from embedder.core.storage import Location
from embedder.core.units import PartName, Stats, task_key
from embedder.stores.config import LoadConfig
from embedder.stores.load import Report, read_version, sync
from embedder.stores.open import open_store
from embedder.stores.vector_store import Loaded
from embedder.table.commits import open_delta
from embedder.table.delta import Change, commit_table, read_table
from embedder.table.parts import footer_of, write_part
from embedder.table.vectors import vector_column
from tests.core.test_spec import SPEC

DIM = 8
TABLE_SPEC = SPEC.model_copy(update={"dim": DIM})
METADATA = pa.schema(
    [
        ("topic", pa.string()),
        ("year", pa.int64()),
        ("weight", pa.float64()),
        ("good", pa.bool_()),
        ("seen", pa.timestamp("us", "UTC")),
        ("tags", pa.list_(pa.string())),
        ("origin", pa.struct([("place", pa.string())])),
    ]
)
SCHEMA = table_schema(METADATA, store_text=True)
RANGES = Ranges(np.full(DIM, -1, np.float32), np.full(DIM, 1, np.float32))
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)

Corpus = Mapping[str, Sequence[str]]
"""By shard: a document is a text of one word a chunk, its first word being its id."""


@dataclass(frozen=True)
class TypedTable:
    """A table that follows a corpus, one part a shard."""

    uri: str
    spec: EmbeddingSpec = TABLE_SPEC

    def follow(self, corpus: Corpus) -> int:
        """Make the table hold the corpus, in one commit; give its version."""
        state = read_table(Location(self.uri))
        folder = Location(self.uri)
        wanted = {str(name_of(shard, texts, self.spec)): (shard, texts) for shard, texts in corpus.items()}
        held = set(state.rows) if state else set()
        rejects = QUARANTINE.empty_table()
        parts = []
        for name in sorted(set(wanted) - held):
            shard, texts = wanted[name]
            rows = rows_of(shard, texts, self.spec)
            stats = Stats(documents=len(texts), chunks=rows.num_rows)
            parsed = PartName.parse(name)
            assert parsed is not None
            parts.append(write_part(rows, rejects, parsed, footer_of(self.spec, stats, RANGES), folder))
        info: dict[str, Any] = {"spec": self.spec.model_dump(), "space_id": self.spec.space_id, "bucket_bits": 0}
        info["ranges"] = RANGES.record()
        replaces = state is not None and state.spec.space_id != self.spec.space_id
        change = Change(tuple(parts), tuple(sorted(held - set(wanted))), schema_of(self.spec), info, replaces)
        return commit_table(Location(self.uri), change, state)

    def of_space(self, **changes: Any) -> "TypedTable":
        """Return the same table under another spec."""
        return replace(self, spec=self.spec.model_copy(update=changes))

    def rows(self, version: int | None = None) -> dict[tuple[str, str, int], dict[str, Any]]:
        """All rows by key."""
        return {key_of(row): row for row in open_delta(Location(self.uri), version).to_pyarrow_table().to_pylist()}


def key_of(row: Mapping[str, Any]) -> tuple[str, str, int]:
    """Name a row."""
    return row["shard"], row["doc_id"], row["chunk"]


def name_of(shard: str, texts: Sequence[str], spec: EmbeddingSpec) -> PartName:
    """Name the part of a shard by its content."""
    return PartName(task_key(shard), digest(list(texts), spec.space_id), 0, len(texts), True)


def schema_of(spec: EmbeddingSpec) -> pa.Schema:
    """Return the columns of a table."""
    return table_schema(METADATA, True, spec.quantization)


def rows_of(shard: str, texts: Sequence[str], spec: EmbeddingSpec) -> pa.Table:
    """Make the rows of a shard; every value is decided by shard and text, and nulls are among them."""
    rows = []
    for row, text in enumerate(texts):
        words = text.split()
        for chunk, word in enumerate(words):
            number = int(digest(shard, text, word)[:4], 16)
            rows.append(
                {
                    "doc_id": words[0], "chunk": chunk, "num_chunks": len(words), "start_char": 0, "end_char": len(word), "num_tokens": 3,
                    "text": word, "content_hash": digest(text), "shard": shard, "row": row,
                    "topic": [None, "x", "it's \"y\"", "ü\\"][number % 4], "year": None if number % 5 == 0 else 1990 + number % 40,
                    "weight": None if number % 7 == 0 else number / 8, "good": [True, False, None][number % 3],
                    "seen": None if number % 6 == 0 else EPOCH + timedelta(days=number % 100, microseconds=number),
                    "tags": [None, [], ["a"], ["a", "it's b"]][number % 4], "origin": {"place": word},
                }
            )  # fmt: skip
    vectors_ND = np.array([vector_of(row["shard"], row["content_hash"], row["text"]) for row in rows], np.float32).reshape(-1, DIM)
    vectors = vector_column(quantize(vectors_ND, spec.quantization, RANGES))
    plain = pa.Table.from_pylist(rows, pa.schema([field for field in SCHEMA if field.name != "embedding"]))
    return plain.append_column(schema_of(spec).field("embedding"), vectors)


def vector_of(*names: str) -> list[float]:
    """Return a unit vector derived from the names."""
    vector_D = np.random.default_rng(int(digest(*names)[:8], 16)).normal(size=DIM).astype(np.float32)
    return (vector_D / np.linalg.norm(vector_D)).tolist()


def corpus_of(num_shards: int, num_documents: int = 12, salt: str = "") -> dict[str, list[str]]:
    """Make shards in which every document has one to three chunks, and ids that other shards have too."""
    return {
        f"shard-{shard}": [" ".join([f"d{number}", f"w{shard}{salt}", "end"][: 1 + number % 3]) for number in range(num_documents)]
        for shard in range(num_shards)
    }


STORES = ("lance", "pgvector", "qdrant", "milvus", "duckdb")


@pytest.fixture
def section_of(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """Return the settings of a store for one test."""

    def section(kind: str) -> dict[str, Any]:
        name = f"t{digest(request.node.nodeid)[:16]}"
        places = {
            "lance": lambda: {"uri": str(tmp_path / "lance")},
            "pgvector": lambda: {"dsn": request.getfixturevalue("postgres"), "type": "vector"},
            "qdrant": lambda: {"path": str(tmp_path / "qdrant")},
            "milvus": lambda: {"uri": str(tmp_path / "milvus.db"), "index": "flat"},
            "duckdb": lambda: {"path": str(tmp_path / "store.duckdb")},
        }
        return {kind: places[kind]() | {"name": name}}

    return section


@dataclass(frozen=True)
class Loader:
    """A table and a store, and the load between them."""

    table: TypedTable
    section: dict[str, Any]

    @property
    def config(self) -> LoadConfig:
        """The settings of the load."""
        return LoadConfig.model_validate({"table": {"uri": self.table.uri}, **self.section})

    def load(self, replaces: bool = False, version: int | None = None) -> Report:
        """Run the load in this process."""
        with open_store(self.config) as store:
            return sync(store, read_version(Location(self.table.uri), version), replaces)

    def loaded(self) -> Loaded | None:
        """Read how far the store says it is."""
        with open_store(self.config) as store:
            return store.loaded()

    def rows(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        """All rows that a search of everything finds, by key; each key once."""
        with open_store(self.config) as store:
            hits = store.search(np.array(vector_of("query"), np.float32), 1000, None)
        rows = {key_of(hit.row): hit.row for hit in hits}
        assert len(rows) == len(hits)
        return rows


@pytest.fixture(params=STORES)
def loader(request: pytest.FixtureRequest, tmp_path: Path, section_of: Callable[[str], dict[str, Any]]) -> Loader:
    """A load of a table that is not there yet into each store in turn."""
    return Loader(TypedTable(str(tmp_path / "table")), section_of(request.param))
