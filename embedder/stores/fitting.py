"""Rows that a store cannot hold are left out and named; values that it can hold in another form only are counted.

Without this, one document that a store refuses would stop every load at the same row.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as is_

from embedder.core.errors import ConfigError
from embedder.stores.rows import ROW_ID

MOST_LEFT_OUT = 500
"""Rows that a store may lack. Their ids are part of its state, which Milvus limits to 64 KiB; more of them are a wrong choice of store."""
_NAMED = 20
_NAME_CHARS = 80
Mask = npt.NDArray[np.bool_]
"""One bool a row."""

logger = logging.getLogger("embedder")


class Fitting:
    """Removes rows that do not fit from the rows on their way to a store; remembers these, and counts altered ones."""

    def __init__(
        self,
        place: str,
        find_unfit: Callable[[pa.Table], Mapping[str, Mask]],
        find_altered: Callable[[pa.Table], Mapping[str, Mask]],
        left_out: Collection[str] = (),
    ) -> None:
        self.place, self._find_unfit, self._find_altered = place, find_unfit, find_altered
        self.left_out = set(left_out)
        self.altered = Counter[str]()
        self._named = 0

    def keep(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Yield the rows that fit; ConfigError if more than MOST_LEFT_OUT do not."""
        for rows in tables:
            self.left_out.difference_update(rows[ROW_ID].to_pylist())
            unfit = self._find_unfit(rows)
            refused = np.logical_or.reduce([np.zeros(rows.num_rows, bool), *unfit.values()])
            for position in np.flatnonzero(refused).tolist():
                reason = next(reason for reason, mask in unfit.items() if mask[position])
                self._leave_out(rows.slice(position, 1), reason)
            kept = rows.filter(pa.array(~refused)) if refused.any() else rows
            for change, mask in self._find_altered(kept).items():
                self.altered[change] += int(mask.sum())
            if kept.num_rows:
                yield kept

    def _leave_out(self, row: pa.Table, reason: str) -> None:
        self.left_out.add(row[ROW_ID][0].as_py())
        shard, doc_id, chunk = (row[name][0].as_py() for name in ("shard", "doc_id", "chunk"))
        name = f"document {doc_id[:_NAME_CHARS]!r}{'…' if len(doc_id) > _NAME_CHARS else ''} of {shard}, chunk {chunk}: {reason}"
        if len(self.left_out) > MOST_LEFT_OUT:
            problem = f"{self.place}: cannot hold more than {MOST_LEFT_OUT} rows, the last {name}"
            raise ConfigError(f"{problem}; leave that column out of source.metadata_columns, or choose another store")
        if self._named < _NAMED:
            logger.warning("%s: left out %s", self.place, name)
        self._named += 1

    def changes(self) -> tuple[str, ...]:
        """Return the alterations, with their numbers of rows."""
        return tuple(f"{count:,} rows: {change}" for change, count in sorted(self.altered.items()) if count)


def find_long(column: pa.ChunkedArray, most_bytes: int, most_items: int) -> Mask:
    """Return the rows whose text, or a text in whose list, has more bytes than allowed, or whose list has more items."""
    if not is_.is_list(column.type):
        return _find_long_text(column, most_bytes)
    array = column.combine_chunks()
    long = _to_mask(pc.greater(pc.list_value_length(array), most_items))
    long[_rows_of(array)[_find_long_text(array.flatten(), most_bytes)]] = True
    return long


def _find_long_text(column: pa.ChunkedArray | pa.Array, most_bytes: int) -> Mask:
    if is_.is_string(column.type):
        return _to_mask(pc.greater(pc.binary_length(column), most_bytes))
    if is_.is_binary(column.type):
        # in base64
        return _to_mask(pc.greater(pc.binary_length(column), most_bytes // 4 * 3))
    return np.zeros(len(column), bool)


def _rows_of(lists: pa.ListArray) -> npt.NDArray[np.int64]:
    """Return the row of each item of the lists."""
    rows: npt.NDArray[np.int64] = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    return rows


def find_null_items(column: pa.ChunkedArray) -> Mask:
    """Return the rows whose list holds a null."""
    array = column.combine_chunks()
    found = np.zeros(len(array), bool)
    found[_rows_of(array)[array.flatten().is_null().to_numpy(zero_copy_only=False)]] = True
    return found


def find_not_finite(column: pa.ChunkedArray) -> Mask:
    """Return the rows that hold NaN or infinity, at any level."""
    if is_.is_floating(column.type):
        return _to_mask(pc.invert(pc.is_finite(column)))
    if not _holds(column.type, is_.is_floating):
        return np.zeros(len(column), bool)
    return find_values(column, lambda value: isinstance(value, float) and not math.isfinite(value))


def find_not_json(rows: pa.Table, names: Collection[str]) -> dict[str, Mask]:
    """Return, by change, the rows with a number that JSON cannot hold in one of these columns."""
    wanted = [name for name in names if name not in (ROW_ID, "embedding")]
    return {f"NaN or infinity became null in {name}": find_not_finite(rows[name]) for name in wanted}


def find_nul(column: pa.ChunkedArray) -> Mask:
    """Return the rows that hold the character NUL, at any level."""
    if is_.is_string(column.type):
        return _to_mask(pc.match_substring(column, "\x00"))
    if not _holds(column.type, is_.is_string):
        return np.zeros(len(column), bool)
    return find_values(column, lambda value: isinstance(value, str) and "\x00" in value)


def find_values(column: pa.ChunkedArray, test: Callable[[Any], bool]) -> Mask:
    """Return the rows with a scalar value, at any level, that passes a test."""
    return np.array([_any_value(value, test) for value in column.to_pylist()], bool)


def _any_value(value: Any, test: Callable[[Any], bool]) -> bool:
    if isinstance(value, dict):
        return any(_any_value(each, test) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return any(_any_value(each, test) for each in value)
    return test(value)


def _holds(type_: pa.DataType, check: Callable[[pa.DataType], bool]) -> bool:
    return check(type_) or any(_holds(type_.field(position).type, check) for position in range(type_.num_fields))


def _to_mask(column: pa.ChunkedArray | pa.Array) -> Mask:
    found: Mask = np.array(pc.fill_null(column, False).to_numpy(zero_copy_only=False), bool)
    return found
