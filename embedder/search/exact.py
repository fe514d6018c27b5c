"""Exact search: scores every vector of a table, batch by batch, and reads the best rows. No vector store needed."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from embedder.core.errors import TableDamagedError
from embedder.core.quantization import Floats, restore
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.core.storage_errors import explained
from embedder.source.filter import Filter, columns_of, passes
from embedder.table.delta import open_checked
from embedder.table.parts import REPAIR, check_name, explain_damage
from embedder.table.run_record import read_record
from embedder.table.vectors import Codes, column_codes

BATCH_ROWS = 16_384
"""One row group: 25 MB of 384-dim vectors; a thread holds about three."""

Candidate = tuple[float, int, int]
"""Negated score, so that the best sorts first; the file; the row in it."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A row found; `score` is the inner product, which is the cosine if vectors are normalized."""

    score: float
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A table to search, or a store loaded from one."""

    spec: EmbeddingSpec
    schema: pa.Schema
    find: Callable[[Floats, int, Filter | None], list[Hit]]
    """Query vector, number of rows, filter → the nearest rows, best first."""
    table: Location
    """The table itself, or the one that the store was loaded from."""


def open_table(location: Location) -> Target:
    """Load the newest version of a table for exact search."""
    dataset = open_dataset(location)
    record = read_record(location)
    if record.spec.quantization == "int8" and record.ranges is None:
        raise TableDamagedError(f"{location.uri}: its log and its parts hold no ranges of int8, so no vector can be restored; {REPAIR}")

    def find(query_D: Floats, top: int, where: Filter | None) -> list[Hit]:
        return nearest_rows(dataset, query_D, top, where, lambda codes_NX: restore(codes_NX, record.spec.quantization, record.ranges))

    return Target(record.spec, dataset.schema, find, location)


def open_dataset(location: Location) -> Any:
    """Load the files of the newest version; each page that is read is compared with its checksum. The table must exist."""
    found = open_checked(location).to_pyarrow_dataset()
    options = ds.ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
    parquet = ds.ParquetFileFormat(default_fragment_scan_options=options)
    fragments = [parquet.make_fragment(each.path, filesystem=found.filesystem) for each in found.get_fragments()]
    return ds.FileSystemDataset(fragments, found.schema, parquet, found.filesystem)


def nearest_rows(
    dataset: Any, query_D: Floats, top: int, where: Filter | None = None, restored: Callable[[Codes], Floats] = lambda codes: codes
) -> list[Hit]:
    """Return the nearest rows, best first. Scans a file per thread; holds a few batches a thread and `top` candidates a file.

    `restored` converts stored codes to vectors.
    """
    fragments = list(dataset.get_fragments())

    def scan(number: int) -> list[Candidate]:
        best: list[Candidate] = []
        with explained(fragments[number].path, "read"), explain_damage(fragments[number].path):
            check_name(fragments[number].metadata, fragments[number].path)
            for first, rows_N, codes_NX in read_passing(fragments[number], dataset.schema, where):
                scores_N = restored(codes_NX) @ query_D
                chosen = np.argpartition(-scores_N, min(top, len(scores_N)) - 1)[:top]
                best = nsmallest(top, best + [(-float(scores_N[each]), number, first + int(rows_N[each])) for each in chosen])
        return best

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        best: list[Candidate] = []
        for found in pool.map(scan, range(len(fragments))):
            best = nsmallest(top, [*best, *found])
    return read_hits(fragments, best, [name for name in dataset.schema.names if name != "embedding"])


def read_passing(fragment: Any, schema: pa.Schema, where: Filter | None) -> Iterator[tuple[int, npt.NDArray[np.int64], Codes]]:
    """Yield, for each batch of a file: the number of its first row, which of its rows pass, and their codes."""
    first = 0
    columns = list(dict.fromkeys(["embedding", *(columns_of(where) if where else ())]))
    reading = {"batch_size": BATCH_ROWS, "batch_readahead": 1, "fragment_readahead": 1, "use_threads": False}
    for batch in fragment.to_batches(schema=schema, columns=columns, **reading):
        rows_N = np.flatnonzero(passes(where, batch)) if where else np.arange(batch.num_rows)
        if len(rows_N):
            codes_NX = column_codes(batch["embedding"])
            yield first, rows_N, codes_NX if len(rows_N) == batch.num_rows else codes_NX[rows_N]
        first += batch.num_rows


def read_hits(fragments: Sequence[Any], candidates: Sequence[Candidate], columns: Sequence[str]) -> list[Hit]:
    """Read the candidates' rows, all of one file at once."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for number in {number for _, number, _ in candidates}:
        wanted = sorted(row for _, each, row in candidates if each == number)
        with explained(fragments[number].path, "read"), explain_damage(fragments[number].path):
            taken = fragments[number].take(wanted, columns=list(columns)).to_pylist()
        rows |= {(number, row): values for row, values in zip(wanted, taken, strict=True)}
    return [Hit(-negative, rows[number, row]) for negative, number, row in candidates]
