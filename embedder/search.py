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

from embedder.errors import StorageError
from embedder.filters import Filter, columns_of, passes
from embedder.output.log import read_spec
from embedder.output.table import open_delta
from embedder.spec import EmbeddingSpec
from embedder.storage import Options

BATCH_ROWS = 16_384
"""A row group: 25 MB of 384-dim vectors a thread, three of them on their way."""

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
    find: Callable[[npt.NDArray[np.float32], int, Filter | None], list[Hit]]
    """Query vector, how many rows, which rows → the rows nearest to it, best first."""


def open_table(uri: str, options: Options) -> Target:
    """Open the newest version of a table for exact search."""
    dataset = open_dataset(uri, options)
    return Target(read_spec(uri, options), dataset.schema, lambda query_D, top, where: nearest_rows(dataset, query_D, top, where))


def open_dataset(uri: str, options: Options) -> Any:
    """Open the files of the newest version."""
    try:
        return open_delta(uri, options).to_pyarrow_dataset()
    except TableNotFoundError as error:
        raise StorageError(f"{uri}: no table there; make one with jobs.embed") from error


def nearest_rows(dataset: Any, query_D: npt.NDArray[np.float32], top: int, where: Filter | None = None) -> list[Hit]:
    """Scan a file on each thread; what is held is a few batches a thread, and `top` places a file."""
    fragments = list(dataset.get_fragments())

    def scan(number: int) -> list[Place]:
        return scan_file(fragments[number], number, dataset.schema, query_D, top, where)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        best: list[Place] = []
        for found in pool.map(scan, range(len(fragments))):
            best = nsmallest(top, [*best, *found])
    return read_hits(fragments, best, [name for name in dataset.schema.names if name != "embedding"])


def scan_file(
    fragment: Any, number: int, schema: pa.Schema, query_D: npt.NDArray[np.float32], top: int, where: Filter | None
) -> list[Place]:
    """Give the best places of one file."""
    best: list[Place] = []
    columns = list(dict.fromkeys(["embedding", *(columns_of(where) if where else ())]))
    for first, batch in read_batches(fragment, schema, columns):
        rows_N = np.flatnonzero(passes(where, batch)) if where else np.arange(batch.num_rows)
        if not len(rows_N):
            continue
        vectors_ND = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, len(query_D))
        scores_N = (vectors_ND if len(rows_N) == batch.num_rows else vectors_ND[rows_N]) @ query_D
        chosen = np.argpartition(-scores_N, min(top, len(scores_N)) - 1)[:top]
        best = nsmallest(top, best + [(-float(scores_N[each]), number, first + int(rows_N[each])) for each in chosen])
    return best


def read_batches(fragment: Any, schema: pa.Schema, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Stream columns of a file, each batch with the number of its first row."""
    first = 0
    reading = {"batch_size": BATCH_ROWS, "batch_readahead": 1, "fragment_readahead": 1, "use_threads": False}
    for batch in fragment.to_batches(schema=schema, columns=list(columns), **reading):
        yield first, batch
        first += batch.num_rows


def read_hits(fragments: Sequence[Any], places: Sequence[Place], columns: Sequence[str]) -> list[Hit]:
    """Read the rows at these places, all of a file at once."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for number in {number for _, number, _ in places}:
        wanted = sorted(row for _, each, row in places if each == number)
        taken = fragments[number].take(wanted, columns=list(columns)).to_pylist()
        rows |= {(number, row): values for row, values in zip(wanted, taken, strict=True)}
    return [Hit(-negative, rows[number, row]) for negative, number, row in places]
