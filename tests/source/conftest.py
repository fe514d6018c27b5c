"""Fixtures that write shards to a folder, and read a folder to its end as one task."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.config.source import SourceConfig
from embedder.core.units import Task
from embedder.source.columns import inspect_source
from embedder.source.documents import SourceUnit, read_units
from embedder.source.shards import list_shards

Read = Callable[..., "Result"]
Write = Callable[..., Path]


def compress_zstd(data: bytes) -> bytes:
    """Return one complete frame."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": compress_zstd,
}


class Result:
    """The units of a task, and their tables joined."""

    def __init__(self, units: list[SourceUnit]) -> None:
        self.units = units
        self.documents = pa.concat_tables([unit.documents for unit in units])
        self.quarantined = pa.concat_tables([unit.quarantined for unit in units])

    @property
    def texts(self) -> list[str]:
        return self.documents["text"].to_pylist()

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return list(zip(self.quarantined["row"].to_pylist(), self.quarantined["reason"].to_pylist(), strict=True))

    @property
    def num_records(self) -> int:
        return len(self.documents) + len(self.quarantined)


@pytest.fixture
def compress() -> dict[str, Callable[[bytes], bytes]]:
    return COMPRESS


@pytest.fixture
def write_file(tmp_path: Path) -> Write:
    """Write records (a list), a table, text or bytes in the format of the suffix."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet") and not isinstance(content, bytes):
            pq.write_table(content if isinstance(content, pa.Table) else pa.Table.from_pylist(content), path, row_group_size=7)
            return path
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(COMPRESS.get(path.suffix, COMPRESS[""])(data))
        return path

    return write


@pytest.fixture
def read() -> Read:
    """Read everything at a path as one task; settings are those of the source section."""

    def read_all(path: Path, metadata: pa.Schema | None = None, **settings: Any) -> Result:
        source = SourceConfig(uri=str(path), **settings)
        shards = list_shards(source).shards
        schema = inspect_source(source, shards) if metadata is None else metadata
        return Result(list(read_units(Task("0" * 16, "0" * 32, shards), source, schema)))

    return read_all
