"""A reader of a few columns fetches only these columns of a file on an object store."""

import io
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from embedder.config.source import SourceConfig
from embedder.core.columns import Shards
from embedder.core.storage import Location
from embedder.core.units import Shard, Task
from embedder.source import documents
from embedder.source.documents import read_units
from embedder.source.sampling import sample_documents
from embedder.source.shards import Listing
from embedder.table.hash_index import HashIndex, IndexedParts, to_uint64
from embedder.table.parts import encode_parquet, part_file, read_batches
from embedder.table.reuse import index_parts, open_known, take_known, take_reusable


class CountedFileSystem(AbstractFileSystem):
    """Holds objects in memory, and counts ranged requests and their bytes."""

    protocol = "counted"
    objects: dict[str, bytes] = {}  # noqa: RUF012
    requests = bytes = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.objects[path]), "type": "file", "ETag": "v"}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> AbstractBufferedFile:
        return CountedFile(self, path, mode, **{name: kwargs[name] for name in ("block_size", "cache_type")})


class CountedFile(AbstractBufferedFile):
    """An open object of CountedFileSystem."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data = self.fs.objects[self.path][start:end]
        CountedFileSystem.requests += 1
        CountedFileSystem.bytes += len(data)
        return data


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[CountedFileSystem]:
    fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
    for name, value in {"objects": {}, "requests": 0, "bytes": 0}.items():
        monkeypatch.setattr(CountedFileSystem, name, value)
    return CountedFileSystem


DRAW = np.random.default_rng(0)
HASHES = [DRAW.bytes(16).hex() for _ in range(1000)]


@pytest.fixture
def folder(store: type[CountedFileSystem]) -> Location:
    """One part of 1,000 chunks: nearly all of its bytes are vectors and texts."""
    count, dim = len(HASHES), 384
    numbers = {name: pa.array([value] * count, pa.int32()) for name, value in {"chunk": 0, "num_chunks": 1, "start_char": 0}.items()}
    numbers |= {name: pa.array([value] * count, pa.int32()) for name, value in {"end_char": 900, "num_tokens": 200}.items()}
    texts = {"text": [DRAW.bytes(1000).hex() for _ in range(count)], "content_hash": HASHES, "shard": ["s3://docs/a"] * count}
    vectors = pa.array(list(DRAW.standard_normal((count, dim)).astype(np.float32)), pa.list_(pa.field("element", pa.float32())))
    store.objects["table/part.parquet"] = encode_parquet(pa.table({**numbers, **texts, "embedding": vectors}), {"stats": {}})
    return Location("counted://table")


def test_an_index_of_hashes_costs_the_hashes_of_a_part(store: type[CountedFileSystem], folder: Location) -> None:
    previous = index_parts(["part.parquet"], folder)
    assert len(previous.hashes) == len(HASHES)
    assert store.bytes < len(store.objects["table/part.parquet"]) / 10
    assert store.requests <= 3


def test_vectors_are_read_without_the_texts(store: type[CountedFileSystem], folder: Location) -> None:
    previous = index_parts(["part.parquet"], folder)
    store.bytes = 0
    assert take_reusable(pa.chunked_array([HASHES[:3]]), previous, folder, "none").num_rows == 3
    assert store.bytes < len(store.objects["table/part.parquet"]) * 2 / 3


def test_copies_in_another_part_cost_a_fixed_number_of_requests(store: type[CountedFileSystem], folder: Location) -> None:
    entries = np.sort(to_uint64(pa.chunked_array([HASHES]))) >> 20 << 20
    index = HashIndex((IndexedParts(np.array([b"part.parquet"]), entries),))
    assert take_known(pa.chunked_array([HASHES[:3]]), open_known([], index, folder), folder, "none").num_rows == 3
    assert store.requests <= 6, "and two looks at the file"
    assert store.bytes < len(store.objects["table/part.parquet"]) * 3 / 4


def test_the_shards_of_a_part_cost_their_column(store: type[CountedFileSystem], folder: Location) -> None:
    assert sum(table.num_rows for table in read_batches(part_file(folder, "part.parquet"), ("shard",))) == len(HASHES)
    assert store.bytes < len(store.objects["table/part.parquet"]) / 20
    assert store.requests <= 2


@pytest.fixture
def shard(store: type[CountedFileSystem]) -> Shard:
    """40 row groups of 100 KB."""
    rows = pa.table({"id": [f"d{number}" for number in range(2000)], "text": [DRAW.bytes(2000).hex() for _ in range(2000)]})
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=50, compression="zstd", write_statistics=["id"])
    store.objects["a.parquet"] = buffer.getvalue()
    return Shard("counted://a.parquet", "v", len(buffer.getvalue()))


def read_last_slice(shard: Shard) -> None:
    task = Task("k", "v", (shard,), (39, 40), 1950)
    [unit] = read_units(task, SourceConfig(uri=shard.uri, id_column="id"), pa.schema([]))
    assert unit.documents.num_rows == 50


def test_a_slice_does_not_fetch_the_texts_before_it(store: type[CountedFileSystem], shard: Shard) -> None:
    read_last_slice(shard)
    assert store.bytes < shard.size_bytes / 8


def test_ids_before_a_slice_of_tiny_row_groups_do_not_cost_a_request_each(
    store: type[CountedFileSystem], shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MOST_NARROW_GROUPS", 0)
    read_last_slice(shard)
    assert store.requests <= 5


def test_a_parquet_sample_costs_the_row_groups_it_reads(
    store: type[CountedFileSystem], shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.source.sampling.LEAST_READ_BYTES", 1)
    sample = sample_documents(SourceConfig(uri=shard.uri), Listing(Shards.of([shard])), 20, seed=0)
    assert sample.bytes_read < shard.size_bytes / 10
    assert store.bytes < shard.size_bytes / 3
