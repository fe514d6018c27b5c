"""Measure the CPU time of each format's reader, and of the whole read path (also check, hash, cut into units), beside another reader of
the same columns. Reader and peer hold Arrow columns at the end; ours also refuses what is damaged, ambiguous or inexact."""

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.orc
import pyarrow.parquet as pq

from embedder.benchmark.source_files import COLUMNS, WRITERS
from embedder.config.source import SourceConfig
from embedder.core.units import Shard, Task
from embedder.demo.corpus import Document
from embedder.observe.progress import align
from embedder.source.decompression import open_each
from embedder.source.documents import read_units
from embedder.source.formats.registry import encoding_of
from embedder.source.formats.rows import Reading
from embedder.source.selection import select_shards
from embedder.source.shards import list_shards

LEAST_TEXT_BYTES = 16 << 20
JOINED = 8
_EXTRAS = {"a.avro": "fastavro", "a.duckdb": "duckdb", "a.warc": "resiliparse"}


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over rounds of reading one file; a second is one of CPU time, all threads together."""

    name: str
    documents_per_second: float
    """Of the whole read path."""
    mb_per_second: float
    """Likewise, bytes of text."""
    peer: str
    reader_ratio: float
    """Of the peer's time to our reader's: 1 is as fast."""
    ratio: float
    """Of the peer's time to that of the whole read path."""

    def line(self) -> str:
        """Return the figures as words."""
        ratios = f"reader {self.reader_ratio:4.2f} × {self.peer}, with checks and hashes {self.ratio:4.2f} ×"
        return f"{self.documents_per_second:9,.0f} documents/s, {self.mb_per_second:5.0f} MB/s; {ratios}"


def measure_sources(documents: Sequence[Document], rounds: int, least_bytes: int = LEAST_TEXT_BYTES) -> list[Speed]:
    """Write the documents, repeated up to `least_bytes`, in each format, and read each file in turn with its peer."""
    table = _make_table(documents, least_bytes)
    text_bytes = table["text"].nbytes
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, write in WRITERS.items():
            if name in _EXTRAS and find_spec(_EXTRAS[name]) is None:
                continue
            path = Path(folder, name)
            write(table, path)
            peer, read_peer = _PEERS[name]
            reads = (_read_units, _read_rows, read_peer)
            times = [[_time(read, path, table.num_rows) for read in reads] for _ in range(rounds + 1)][1:]
            seconds = statistics.median(each[0] for each in times)
            whole, reader = (statistics.median(each[2] / each[at] for each in times) for at in (0, 1))
            found.append(Speed(name, table.num_rows / seconds, text_bytes / seconds / 1e6, peer, reader, whole))
            path.unlink()
    return found


def lay_out_sources(speeds: Sequence[Speed]) -> str:
    """Return a line a format."""
    return align((each.name, each.line()) for each in speeds)


def _make_table(documents: Sequence[Document], least_bytes: int) -> pa.Table:
    """Return texts of some 2 KB, each joined from several docstrings."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    groups = [documents[first : first + JOINED] for first in range(0, len(documents), JOINED)]
    texts = ["\n\n".join(each.text for each in group) for group in groups]
    texts *= 1 + least_bytes // sum(map(len, texts))
    numbers = range(len(texts))
    dates = [start + timedelta(seconds=number) for number in numbers]
    columns = [[f"urn:{number}" for number in numbers], texts, [f"https://example.org/{number}" for number in numbers], dates]
    return pa.table(columns, schema=COLUMNS)


def _time(read: Callable[[Path], Iterator[int]], path: Path, num_rows: int) -> float:
    started = time.process_time()
    found = sum(read(path))
    seconds = time.process_time() - started
    assert found == num_rows, (path, found, num_rows)
    return seconds


def _open(path: Path) -> tuple[SourceConfig, tuple[Shard, ...], pa.Schema]:
    settings: dict[str, Any] = {"id_column": "id", "metadata_columns": ["url", "date"], "metadata_types": {"date": "timestamp"}}
    source = SourceConfig(uri=str(path), **settings)
    listing, metadata = select_shards(source, list_shards(source))
    return source, tuple(listing.shards), metadata


def _read_units(path: Path) -> Iterator[int]:
    source, shards, metadata = _open(path)
    for unit in read_units(Task("0" * 16, "0" * 32, shards), source, metadata):
        yield unit.documents.num_rows + unit.quarantined.num_rows


def _read_rows(path: Path) -> Iterator[int]:
    source, shards, metadata = _open(path)
    for shard, file in open_each(shards, source):
        encoding = encoding_of(shard, source.format)
        assert encoding is not None, shard
        for rows in encoding.format.read(file, Reading(shard, encoding.compression, source, metadata)):
            yield len(rows.texts)


def _read_stream(path: Path) -> Iterator[int]:
    # not by its name, which would only map the file into memory
    with pa.ipc.open_stream(pa.OSFile(str(path))) as stream:
        yield from (batch.num_rows for batch in stream)


def _read_avro(path: Path) -> Iterator[int]:
    import fastavro

    with path.open("rb") as file:
        for block in fastavro.block_reader(file):
            yield pa.Table.from_pylist(list(block), COLUMNS).num_rows


def _read_sqlite(path: Path) -> Iterator[int]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT id, text, url, date FROM documents")
        while batch := rows.fetchmany(1024):
            yield pa.table(list(map(pa.array, zip(*batch, strict=True))), COLUMNS.names).num_rows


def _read_duckdb(path: Path) -> Iterator[int]:
    import duckdb

    with duckdb.connect(str(path), read_only=True, config={"threads": "1"}) as connection:
        yield from (batch.num_rows for batch in connection.sql("FROM documents").to_arrow_reader())


def _read_warc(path: Path) -> Iterator[int]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with path.open("rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            record.reader.read().decode()
            yield 1


def _read_csv(delimiter: str) -> Callable[[Path], Iterator[int]]:
    def read(path: Path) -> Iterator[int]:
        parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        with pa.csv.open_csv(path, pa.csv.ReadOptions(use_threads=False), parse) as reader:
            yield from (batch.num_rows for batch in reader)

    return read


_PEERS: dict[str, tuple[str, Callable[[Path], Iterator[int]]]] = {
    "a.parquet": ("pyarrow", lambda path: iter([pq.read_table(path, use_threads=False).num_rows])),
    "a.orc": ("pyarrow", lambda path: iter([pa.orc.read_table(str(path)).num_rows])),
    "a.arrow": ("pyarrow", lambda path: iter([pa.ipc.open_file(pa.OSFile(str(path))).read_all().num_rows])),
    "stream.arrow": ("pyarrow", _read_stream),
    "a.avro": ("fastavro", _read_avro),
    "a.sqlite": ("sqlite3", _read_sqlite),
    "a.duckdb": ("duckdb", _read_duckdb),
    "a.jsonl": ("pyarrow", lambda path: iter([pa.json.read_json(path, pa.json.ReadOptions(use_threads=False)).num_rows])),
    "a.csv": ("pyarrow", _read_csv(",")),
    "a.tsv": ("pyarrow", _read_csv("\t")),
    "a.warc": ("fastwarc", _read_warc),
}
