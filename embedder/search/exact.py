"""Exact search: every vector of a table is scored, a batch at a time, and the rows of the best are read. No store needed."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deltalake.exceptions import TableNotFoundError

from embedder.core.errors import StorageError
from embedder.core.quantization import Floats, restore
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.search.filter import Filter, columns_of, passes
from embedder.table.delta import open_delta
from embedder.table.run_record import read_record
from embedder.table.vectors import Codes, column_codes

BATCH_ROWS = 16_384
"""A row group: 25 MB of 384-dim vectors a thread, three of them on their way."""

Restore = Callable[[Codes], Floats]
Place = tuple[float, int, int]
"""Score with its sign turned, so that the best comes first; the file; the row in it."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A row found, best first; `score` is the inner product, the cosine where vectors are normalised."""

    score: float
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """What is searched: a table, or a store that was loaded from one."""

    spec: EmbeddingSpec
    schema: pa.Schema
    find: Callable[[Floats, int, Filter | None], list[Hit]]
    """Query vector, how many rows, which rows → the rows nearest to it, best first."""
    table: Location
    """The table, or the one that the store was loaded from."""


def open_table(location: Location) -> Target:
    """Open the newest version of a table for exact search."""
    record, dataset = read_record(location), open_dataset(location)

    def find(query_D: Floats, top: int, where: Filter | None) -> list[Hit]:
        return nearest_rows(dataset, query_D, top, where, lambda codes_NX: restore(codes_NX, record.spec.quantization, record.ranges))

    return Target(record.spec, dataset.schema, find, location)


def open_dataset(location: Location) -> Any:
    """Open the files of the newest version."""
    try:
        return open_delta(location).to_pyarrow_dataset()
    except TableNotFoundError as error:
        raise StorageError(f"{location.uri}: no table there; make one with jobs.embed") from error


def nearest_rows(
    dataset: Any, query_D: Floats, top: int, where: Filter | None = None, restored: Restore = lambda codes: codes
) -> list[Hit]:
    """Scan a file on each thread; what is held is a few batches a thread, and `top` places a file.

    `restored` turns stored codes into the vectors that they stand for.
    """
    fragments = list(dataset.get_fragments())

    def scan(number: int) -> list[Place]:
        best: list[Place] = []
        for first, rows_N, codes_NX in read_passing(fragments[number], dataset.schema, where):
            scores_N = restored(codes_NX) @ query_D
            chosen = np.argpartition(-scores_N, min(top, len(scores_N)) - 1)[:top]
            best = nsmallest(top, best + [(-float(scores_N[each]), number, first + int(rows_N[each])) for each in chosen])
        return best

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        best: list[Place] = []
        for found in pool.map(scan, range(len(fragments))):
            best = nsmallest(top, [*best, *found])
    return read_hits(fragments, best, [name for name in dataset.schema.names if name != "embedding"])


def read_passing(fragment: Any, schema: pa.Schema, where: Filter | None) -> Iterator[tuple[int, npt.NDArray[np.int64], Codes]]:
    """Stream a file's vectors that pass: the number of the batch's first row, which of its rows, their codes."""
    first = 0
    columns = list(dict.fromkeys(["embedding", *(columns_of(where) if where else ())]))
    reading = {"batch_size": BATCH_ROWS, "batch_readahead": 1, "fragment_readahead": 1, "use_threads": False}
    for batch in fragment.to_batches(schema=schema, columns=columns, **reading):
        rows_N = np.flatnonzero(passes(where, batch)) if where else np.arange(batch.num_rows)
        if len(rows_N):
            codes_NX = column_codes(batch["embedding"])
            yield first, rows_N, codes_NX if len(rows_N) == batch.num_rows else codes_NX[rows_N]
        first += batch.num_rows


def read_hits(fragments: Sequence[Any], places: Sequence[Place], columns: Sequence[str]) -> list[Hit]:
    """Read the rows at these places, all of a file at once."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for number in {number for _, number, _ in places}:
        wanted = sorted(row for _, each, row in places if each == number)
        taken = fragments[number].take(wanted, columns=list(columns)).to_pylist()
        rows |= {(number, row): values for row, values in zip(wanted, taken, strict=True)}
    return [Hit(-negative, rows[number, row]) for negative, number, row in places]
