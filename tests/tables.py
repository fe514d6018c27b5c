"""Tables made without Ray or a model: made-up documents become parts and a commit, as in a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from embedder.core.columns import Shards, Tasks
from embedder.core.plan import SMALL_SHARD_BYTES, group_shards, plan_work
from embedder.core.schema import DOCUMENTS, QUARANTINE, table_schema
from embedder.core.spec import EmbeddingSpec, digest
from embedder.core.storage import Location
from embedder.core.units import Part, PartName, Shard, Stats, Task
from embedder.table.commits import open_delta
from embedder.table.delta import Change, commit_table, read_table
from embedder.table.parts import assemble_rows, footer_of, list_parts, read_part, write_part
from embedder.table.quarantine import sync_quarantine
from embedder.text.chunking import CHUNKS
from tests.core.test_spec import SPEC as ANY_SPEC

DIM = 4
SPEC = ANY_SPEC.model_copy(update={"dim": DIM})
BITS = 1
METADATA = pa.schema([("topic", pa.string()), ("tags", pa.list_(pa.string()))])
SCHEMA = table_schema(METADATA, store_text=True)
LARGE = "large"
"""A shard whose name starts with it is read on its own, any other in a bucket."""

Document = tuple[str, str, str | None]
"""Id, text (one chunk a word; a text without words is quarantined), topic."""
Corpus = Mapping[str, Sequence[Document]]
NO_FIGURES: Mapping[str, Any] = {}


@dataclass(frozen=True)
class MadeTable:
    """A table that is synced with corpora."""

    uri: str
    rows_per_unit: int = 2
    spec: EmbeddingSpec = SPEC

    @property
    def location(self) -> Location:
        """The table's location."""
        return Location(self.uri)

    def follow(self, corpus: Corpus, layout: str = "layout", quarantine: bool = True, record: Mapping[str, Any] = NO_FIGURES) -> int:
        """Make the table hold the corpus, in one commit that carries a record's figures; return its version."""
        state = read_table(self.location)
        tasks = group_shards([as_shard(name, content) for name, content in corpus.items()], layout, BITS)
        stored = set(list_parts(self.location)) - set(state.parts if state else [])
        plan = plan_work(tasks, state.parts if state else [], list(stored))
        parts = [read_part(str(name), self.location) for name in plan.adopt]
        parts += [part for task in plan.read for part in self.write(task, corpus)]
        info = {"spec": self.spec.model_dump(), "space_id": self.spec.space_id, "bucket_bits": BITS, **record}
        version = commit_table(self.location, Change(tuple(parts), tuple(map(str, plan.remove)), SCHEMA, info), state)
        if quarantine:
            sync_quarantine(self.location)
        return version

    def write(self, task: Task, corpus: Corpus) -> list[Part]:
        """Write the parts of one task."""
        records = [(shard.uri, row, *document) for shard in task.shards for row, document in enumerate(corpus[shard.uri])]
        bounds = [*range(0, len(records), self.rows_per_unit), len(records)] if records else [0, 0]
        return [
            self.write_unit(PartName(task.key, task.version, first, stop, stop == len(records)), records[first:stop])
            for first, stop in pairwise(bounds)
        ]

    def write_unit(self, name: PartName, records: Sequence[tuple[str, int, str, str, str | None]]) -> Part:
        """Write one part and its quarantine file."""
        good = [record for record in records if record[3].split()]
        bad = [(shard, row, doc_id, "empty_text", text) for shard, row, doc_id, text, _ in records if not text.split()]
        documents = to_columns(DOCUMENTS, [(doc_id, text, hash_text(text), shard, row) for shard, row, doc_id, text, _ in good])
        documents = documents.append_column("topic", pa.array([record[4] for record in good], pa.string()))
        documents = documents.append_column("tags", pa.array([[record[4], "x"] for record in good], METADATA.field("tags").type))
        chunks = to_columns(CHUNKS, [chunk for number, record in enumerate(good) for chunk in cut(number, record[3])])
        vectors_ND = np.array([vector_of(word) for record in good for word in record[3].split()], np.float32).reshape(-1, DIM)
        stats = Stats(documents=len(records), quarantined=len(bad), chunks=chunks.num_rows, tokens=3 * chunks.num_rows)
        rows = assemble_rows(documents, chunks, vectors_ND, store_text=True)
        footer = footer_of(self.spec, stats)
        return write_part(rows, to_columns(QUARANTINE, bad), name, footer, self.location)

    def rows(self, version: int | None = None) -> list[dict[str, Any]]:
        """Return all rows, in order of shard, row and chunk."""
        rows = open_delta(self.location, version).to_pyarrow_table().to_pylist()
        return sorted(rows, key=lambda row: (row["shard"], row["row"], row["chunk"]))

    def quarantine(self) -> list[dict[str, Any]]:
        """Return all quarantined records, in order of shard and row."""
        rows = open_delta(self.location.child("_quarantine")).to_pyarrow_table().to_pylist()
        return sorted(rows, key=lambda row: (row["shard"], row["row"]))

    def names(self, version: int | None = None) -> list[PartName]:
        """Return the committed parts."""
        names = pa.table(open_delta(self.location, version).get_add_actions())["path"].to_pylist()
        return [name for name in map(PartName.parse, sorted(names)) if name is not None]


def as_columns(tasks: Sequence[Task]) -> Tasks:
    """Return tasks as the columns that a plan has."""
    stops = np.cumsum([len(task.shards) for task in tasks])
    names = pa.array([f"{task.key}-{task.version}" for task in tasks], pa.string())
    sizes = np.array([task.size_bytes for task in tasks])
    shards = Shards.of(shard for task in tasks for shard in task.shards)
    return Tasks(shards, names, np.arange(len(shards)), np.concatenate([[0], stops])[:-1], stops, sizes)


def to_columns(schema: pa.Schema, records: Sequence[Sequence[Any]]) -> pa.Table:
    """Return records as columns."""
    return pa.Table.from_pylist([dict(zip(schema.names, record, strict=True)) for record in records], schema)


def hash_text(text: str) -> str:
    """Return the content hash of a text."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def as_shard(name: str, content: Sequence[Document]) -> Shard:
    """Return the shard of some documents; its version is their digest."""
    size = SMALL_SHARD_BYTES if name.startswith(LARGE) or len(content) > 6 else 10
    return Shard(name, digest(list(content)), size)


def cut(number: int, text: str) -> list[tuple[Any, ...]]:
    """Return a text's words as CHUNKS."""
    words, start, chunks = text.split(), 0, []
    for place, word in enumerate(words):
        start = text.index(word, start)
        chunks.append((number, place, len(words), start, start + len(word), 3, False, []))
        start += len(word)
    return chunks


def vector_of(word: str) -> np.ndarray:
    """Return a unit vector that depends on the word alone."""
    vector_D = np.random.default_rng(int(digest(word)[:8], 16)).normal(size=DIM)
    return vector_D / np.linalg.norm(vector_D)
