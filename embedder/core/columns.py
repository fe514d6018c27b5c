"""Shards, tasks and part names as columns, about 100 bytes a row; an object is made only of a row that is looked at."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.digests import BATCH_ROWS
from embedder.core.units import KEY_BYTES, PART, VERSION_BYTES, PartName, Shard, Task

T = TypeVar("T")
Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_COMPRESSED = r"\.(?:gz|zst|bz2|xz|parquet|orc)$"
_KEY_CHARS, _ROW_CHARS = 2 * KEY_BYTES, 12
_TASK_CHARS = _KEY_CHARS + 1 + 2 * VERSION_BYTES


class Rows(Sequence[T]):
    """A sequence over columns, whose objects are made when they are asked for."""

    @abstractmethod
    def make(self, rows: Numbers) -> list[T]:
        """Return the objects of some rows."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        rows = np.arange(len(self))[index]
        return self.make(rows) if isinstance(index, slice) else self.make(np.array([rows]))[0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), BATCH_ROWS):
            yield from self.make(np.arange(start, min(start + BATCH_ROWS, len(self))))


class Named(Rows[T]):
    """Rows with a name that starts with the key and the version of a task."""

    names: pa.StringArray

    @property
    def keys(self) -> pa.StringArray:
        """The key of each row's task."""
        return pc.utf8_slice_codeunits(self.names, 0, _KEY_CHARS)

    @property
    def versions(self) -> pa.StringArray:
        """The version of each row's task."""
        return pc.utf8_slice_codeunits(self.names, _KEY_CHARS + 1, _TASK_CHARS)


@dataclass(frozen=True, slots=True, eq=False)
class Shards(Rows[Shard]):
    """Shards, most of which differ in three columns only."""

    uris: pa.LargeStringArray
    versions: pa.LargeStringArray
    sizes: Numbers
    """Bytes."""
    kind: npt.NDArray[np.int32]
    """Of each row, the place in `kinds`."""
    kinds: tuple[Shard, ...]
    """One shard for each combination of the other fields."""

    @staticmethod
    def of(shards: Iterable[Shard]) -> "Shards":
        """Return shards as columns; columns stay as they are."""
        if isinstance(shards, Shards):
            return shards
        kinds: dict[tuple[Any, ...], int] = {}
        rows = [(each.uri, each.version, each.size_bytes, kinds.setdefault(_fields(each), len(kinds))) for each in shards]
        uris, versions, sizes, kind = zip(*rows, strict=True) if rows else ((), (), (), ())
        made = tuple(Shard("", "", 0, *fields) for fields in kinds)
        return Shards(_texts(uris), _texts(versions), np.array(sizes, np.int64), np.array(kind, np.int32), made)

    @staticmethod
    def concat(each: Sequence["Shards"]) -> "Shards":
        """Return the rows of all, in order."""
        starts = np.cumsum([0, *(len(shards.kinds) for shards in each)])
        return Shards(
            pa.concat_arrays([shards.uris for shards in each]),
            pa.concat_arrays([shards.versions for shards in each]),
            np.concatenate([shards.sizes for shards in each]),
            np.concatenate([shards.kind + start for shards, start in zip(each, starts, strict=False)]).astype(np.int32),
            tuple(kind for shards in each for kind in shards.kinds),
        )

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def compressed_bytes(self) -> int:
        """Bytes of those in a compressed format."""
        return int(self.sizes[pc.match_substring_regex(self.uris, _COMPRESSED).to_numpy(zero_copy_only=False)].sum())

    def make(self, rows: Numbers) -> list[Shard]:
        """Return the shards of some rows."""
        uris, versions = (column.take(pa.array(rows)).to_pylist() for column in (self.uris, self.versions))
        columns = (uris, versions, self.sizes[rows].tolist(), self.kind[rows].tolist())
        return [Shard(uri, version, size, *_fields(self.kinds[kind])) for uri, version, size, kind in zip(*columns, strict=True)]

    def select(self, rows: Numbers) -> "Shards":
        """Return some rows, in this order."""
        taken = pa.array(rows)
        return Shards(self.uris.take(taken), self.versions.take(taken), self.sizes[rows], self.kind[rows], self.kinds)


@dataclass(frozen=True, slots=True, eq=False)
class Tasks(Named[Task]):
    """Tasks over the rows of some shards."""

    shards: Shards
    names: pa.StringArray
    """Key and version, as a part's name starts."""
    members: Numbers
    """Rows of shards, those of a task together."""
    starts: Numbers
    stops: Numbers
    """Of each task, its first member and the one after its last."""
    sizes: Numbers
    """Bytes."""

    @staticmethod
    def concat(first: "Tasks", second: "Tasks") -> "Tasks":
        """Return the tasks of both, in order."""
        num = len(first.members)
        return Tasks(
            Shards.concat([first.shards, second.shards]),
            pa.concat_arrays([first.names, second.names]),
            np.concatenate([first.members, second.members + len(first.shards)]),
            np.concatenate([first.starts, second.starts + num]),
            np.concatenate([first.stops, second.stops + num]),
            np.concatenate([first.sizes, second.sizes]),
        )

    @property
    def size_bytes(self) -> int:
        """Stored bytes of all their shards."""
        return int(self.sizes.sum())

    @property
    def all_shards(self) -> Shards:
        """The shards of all tasks."""
        return self.shards.select(self.rows)

    @property
    def rows(self) -> Numbers:
        """The rows of all their shards."""
        lengths = self.stops - self.starts
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows: Numbers = self.members[np.repeat(self.starts, lengths) + within]
        return rows

    def __len__(self) -> int:
        return len(self.names)

    def make(self, rows: Numbers) -> list[Task]:
        """Return some tasks, with their shards."""
        chosen = self.select(rows)
        shards = iter(self.shards.make(chosen.rows))
        counts = (chosen.stops - chosen.starts).tolist()
        return [
            Task(name[:_KEY_CHARS], name[_KEY_CHARS + 1 :], tuple(next(shards) for _ in range(count)))
            for name, count in zip(chosen.names.to_pylist(), counts, strict=True)
        ]

    def with_keys(self, keys: Iterable[str], invert: bool = False) -> "Tasks":
        """Return the tasks that have, or do not have, one of some keys."""
        return self.select(is_among(self.keys, pa.array(keys, pa.string())) != invert)

    def select(self, rows: Numbers | Mask) -> "Tasks":
        """Return some tasks, by row or by mask."""
        rows = np.arange(len(self))[rows]
        return Tasks(self.shards, self.names.take(pa.array(rows)), self.members, self.starts[rows], self.stops[rows], self.sizes[rows])


@dataclass(frozen=True, eq=False)
class PartNames(Named[PartName]):
    """Names of parts."""

    names: pa.StringArray

    @staticmethod
    def of(names: Iterable[PartName]) -> "PartNames":
        """Return names as a column; a column stays as it is."""
        return names if isinstance(names, PartNames) else PartNames(pa.array([str(name) for name in names], pa.string()))

    @staticmethod
    def concat(first: "PartNames", second: "PartNames") -> "PartNames":
        """Return the names of both, in order."""
        return PartNames(pa.concat_arrays([first.names, second.names]))

    @staticmethod
    def parse(names: Iterable[str]) -> "PartNames":
        """Return the names of parts, all of which must be."""
        return PartNames(pa.array(names, pa.string()))

    @cached_property
    def tasks(self) -> pa.StringArray:
        """Key and version of each part's task."""
        return pc.utf8_slice_codeunits(self.names, 0, _TASK_CHARS)

    @property
    def num_documents(self) -> int:
        """Rows of their shards, quarantined ones included."""
        first, stop = _TASK_CHARS + 1, _TASK_CHARS + _ROW_CHARS + 2
        columns = (pc.utf8_slice_codeunits(self.names, start, start + _ROW_CHARS).cast(pa.int64()) for start in (first, stop))
        starts, stops = (pc.sum(column).as_py() or 0 for column in columns)
        return int(stops - starts)

    def __len__(self) -> int:
        return len(self.names)

    def make(self, rows: Numbers) -> list[PartName]:
        """Return some names, parsed."""
        return [name for text in self.names.take(pa.array(rows)).to_pylist() if (name := PartName.parse(text))]

    def with_keys(self, keys: Iterable[str], invert: bool = False) -> "PartNames":
        """Return the names that have, or do not have, one of some keys."""
        return self.select(is_among(self.keys, pa.array(keys, pa.string())) != invert)

    def select(self, mask: Mask) -> "PartNames":
        """Return the names at which the mask is true."""
        return PartNames(self.names.filter(pa.array(mask)))


def find_foreign(names: Iterable[str]) -> list[str]:
    """Return the names that are not those of parts."""
    column = pa.array(names, pa.string())
    foreign: list[str] = column.filter(pc.invert(pc.match_substring_regex(column, f"^(?:{PART.pattern})$"))).to_pylist()
    return foreign


def is_among(values: pa.Array, among: pa.Array) -> Mask:
    """Return of each value whether it is among others."""
    return np.asarray(pc.is_in(values, value_set=among).to_numpy(zero_copy_only=False), np.bool_)


def _fields(shard: Shard) -> tuple[Any, ...]:
    """Return the fields that have no column of their own."""
    return tuple(getattr(shard, name) for name in Shard.__slots__[3:])


def _texts(values: Iterable[str]) -> pa.LargeStringArray:
    return pa.array(values, pa.large_string())
