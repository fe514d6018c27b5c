"""A parquet footer → the bounds of columns in each row group, and whether a record of the group can pass a filter.

The footer is parsed here, since pyarrow 26 aborts the process if the statistics of a damaged footer are accessed. A bound is never taken
for a value: writers cut long texts, and ignore NaN.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.types as is_

from embedder.source.filter import Compare, Filter, Group, Has, IsNull, OneOf, passes
from embedder.source.metadata_casts import cast_column

MOST_FOOTER_BYTES = 4 << 20
"""A longer footer is not parsed, which takes 0.8 s for each MiB."""
_TAIL_BYTES = 64 << 10
"""Bytes that pyarrow fetches first, so that an object store is not asked again."""

_KINDS: tuple[Callable[[pa.DataType], bool], ...] = (
    is_.is_boolean, is_.is_integer, is_.is_floating, is_.is_date32, is_.is_timestamp, (pa.string(), pa.large_string()).__contains__
)  # fmt: skip
"""Types with bounds that hold after a cast within the kind. Decimals, nested columns and times of day are always read."""
_PLAIN: Mapping[int, str] = {0: "<?", 1: "<i", 2: "<q", 4: "<f", 5: "<d"}
"""By physical type: BOOLEAN, INT32, INT64, FLOAT, DOUBLE. INT96 has no order."""
_BYTE_ARRAY = 6


@dataclass(frozen=True, slots=True)
class Bounds:
    """Statistics of one column in one row group."""

    num_rows: int
    num_nulls: int | None
    ends: pa.Array | None
    """Least and greatest value in the type of the filter, or beyond them; None: unknown."""


def read_bounds(file: IO[bytes], columns: Mapping[str, tuple[pa.DataType, pa.DataType]]) -> list[dict[str, Bounds]]:
    """Return the bounds of flat columns by row group, for each column's type in the file and in the filter; [] if there are none."""
    size = file.seek(0, 2)
    file.seek(max(size - _TAIL_BYTES, 0))
    tail = file.read(_TAIL_BYTES)
    length = int.from_bytes(tail[-8:-4], "little")
    if length > min(MOST_FOOTER_BYTES, size - 8):
        return []
    if length + 8 > len(tail):
        file.seek(size - 8 - length)
        tail = file.read(length + 8)
    try:
        footer = _Compact(tail[-8 - length : -8]).read_struct()
        # 4: row groups, 7: the orders of their columns, each by the type of its column if it is 1
        by_type = [1 in order for order in footer.get(7, [])]
        return [_bound_group(group, by_type, columns) for group in footer[4]]
    except (LookupError, TypeError, ValueError, AttributeError, struct.error, RecursionError, pa.ArrowException):
        return []  # damaged: the reader explains where


def _bound_group(group: dict[int, Any], by_type: list[bool], columns: Mapping[str, tuple[pa.DataType, pa.DataType]]) -> dict[str, Bounds]:
    found: dict[str, Bounds] = {}
    for is_by_type, chunk in zip(by_type, group[1], strict=True):
        described = chunk[3]
        name, statistics = b".".join(described[3]).decode(), described.get(12)
        if name in found:
            raise ValueError("two columns of a name")
        if name in columns and is_by_type and statistics:
            found[name] = Bounds(group[3], statistics.get(3), _find_ends(described[1], statistics, *columns[name]))
    return found


def _find_ends(physical: int, statistics: dict[int, Any], stored: pa.DataType, wanted: pa.DataType) -> pa.Array | None:
    stored = stored.value_type if is_.is_dictionary(stored) else stored
    least, greatest = statistics.get(6), statistics.get(5)
    is_ordered = any(kind(stored) and kind(wanted) for kind in _KINDS) and not (is_.is_timestamp(stored) and stored.unit == "ns")
    if not is_ordered or least is None or greatest is None or physical not in (*_PLAIN, _BYTE_ARRAY):
        return None
    if physical == _BYTE_ARRAY:
        try:
            ends = pa.array([least.decode(), greatest.decode()], stored)
        except UnicodeDecodeError:
            return None  # cut within a character
    else:
        code = _PLAIN[physical].upper() if is_.is_unsigned_integer(stored) else _PLAIN[physical]
        ends = pa.array(np.array([struct.unpack(code, each)[0] for each in (least, greatest)], code))
        if is_.is_floating(stored) and np.isnan(ends.to_numpy()).any():
            return None
        ends = ends.cast(stored)
    misfits: list[object] = []
    ends = cast_column(ends, wanted, lambda _, value: misfits.append(value))
    return None if misfits else ends


def can_pass(where: Filter, bounds: Mapping[str, Bounds]) -> bool:
    """Return whether a record within the bounds can pass."""
    if isinstance(where, Group):
        return (all if where.joined_by == "and" else any)(can_pass(part, bounds) for part in where.parts)
    known = bounds.get(where.column)
    if known is None or isinstance(where, Has):
        return True
    if isinstance(where, IsNull):
        return known.num_nulls != (known.num_rows if where.negated else 0)
    if known.num_nulls == known.num_rows:
        return False
    if known.ends is None:
        return True
    if isinstance(where, OneOf) and not where.negated:
        return any(can_pass(Compare(where.column, "=", value), bounds) for value in where.values)
    if isinstance(where, Compare) and where.operator == "=":
        return all(can_pass(replace(where, operator=operator), bounds) for operator in ("<=", ">="))
    if is_.is_floating(known.ends.type) and (isinstance(where, OneOf) or where.operator == "!="):
        return True  # NaN differs from every value and is in no bounds
    return bool(passes(where, pa.record_batch([known.ends], [where.column])).any())


class _Compact:
    """Reads Thrift's compact protocol: structs as dicts by field number."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read_struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = head & 15 == 1 if head & 15 in (1, 2) else self._read(head & 15)
        return fields

    def _read(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._take(8)
        if kind == 8:
            return self._take(self._varint())
        if kind in (9, 10):
            return list(self._read_list())
        if kind == 12:
            return self.read_struct()
        raise ValueError(f"type {kind} is in no footer")

    def _read_list(self) -> Iterator[Any]:
        head = self._byte()
        for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
            yield self._read(head & 15)

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _take(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._data):
            raise ValueError("the footer ends too early")
        return self._data[self._at - count : self._at]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number is longer than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
