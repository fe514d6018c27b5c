"""Types between a format and the rest of source: a reader gets a `Reading` and yields `Rows`, an inspection returns `ShardColumns`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import reduce
from math import isfinite
from typing import IO, Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.source import SourceConfig
from embedder.core.context import CONTEXT_PREFIX, OPTIONAL_SUFFIX
from embedder.core.errors import SourceError
from embedder.core.schema import Reason
from embedder.core.units import Shard
from embedder.source.filter import Filter
from embedder.source.metadata_values import MISFITS, Refuse, excerpt_value

T = TypeVar("T")

FILTER_PREFIX = "filter:"
"""Before the names of columns that are read for source.filter only, among those of the metadata."""
EXCERPT_CHARS = 200
_MOST_ID_DIGITS = 310
_NAME_CHARS = 50
_MOST_NAMES = 30
Refusals = dict[int, tuple[Reason, str | None]]
"""By position in a batch: the reason to quarantine a record, and an excerpt."""
Slice = tuple[int, int, int]
"""First row group, stop row group and first row of a part of a shard."""


@dataclass(frozen=True, slots=True)
class Columns(Generic[T]):
    """The columns to read, in a format's own terms."""

    texts: list[T]
    id: T | None
    metadata: list[T]

    def __iter__(self) -> Iterator[T]:
        yield from (*self.texts, *([] if self.id is None else [self.id]), *self.metadata)


def has_default(source: SourceConfig, key: str) -> bool:
    """Return whether a column is read for a chunk's template, which states a default for it, and for nothing else."""
    names = [name for name, each in source.metadata_columns.items() if each == key]
    is_asked = key in source.text_columns or key == source.id_column
    return not is_asked and bool(names) and all(name.startswith(CONTEXT_PREFIX) and name.endswith(OPTIONAL_SUFFIX) for name in names)


@dataclass(frozen=True, slots=True)
class Reading:
    """Arguments of a format's reader: the shard, its columns and, for a slice, its row groups."""

    shard: Shard
    compression: str | None
    source: SourceConfig
    metadata: pa.Schema
    row_groups: tuple[int, int] | None = None
    first_row: int = 0
    tested: tuple[Filter, pa.Schema] | None = None
    """The filter that the records will be tested by, and its columns: a format may leave out records that cannot pass."""

    def has_constant(self, key: str) -> bool:
        """Return whether a folder's name or a table's log gives this column."""
        return any(key == name for name, _ in self.shard.constants)

    def may_lack(self, key: str) -> bool:
        """Return whether the file may be without a column, whose value is then that of `constant`: where its folder or table gives the
        value, and where only a chunk's template reads it and states a default."""
        return key in self.shard.optional or self.has_constant(key) or has_default(self.source, key)

    def constant(self, key: str) -> str | None:
        """Return the value that a column has in all records of the shard, as text."""
        return dict(self.shard.constants).get(key)

    def check_constant(self, key: str, values: Iterable[Any]) -> None:
        """Raise SourceError if the file's own column has a value that is not the one of its folder or log."""
        constant = self.constant(key)
        for value in values:
            if not is_same(value, constant):
                named = "the table's log" if self.shard.is_logged else "its folder"
                raise SourceError(
                    f"{self.shard.uri}: column {key!r} holds {excerpt_value(value)}, and {named} names {excerpt_value(constant)}; "
                    "move the file, or correct its column"
                )

    def find_columns(self, find: Callable[[str, str], T]) -> Columns[T]:
        """Return the result of `find(key, setting)` for every column of the source: what to set if the column is not as it is wanted."""
        return Columns(
            [find(key, "source.text_columns") for key in self.source.text_columns],
            find(self.source.id_column, "source.id_column") if self.source.id_column else None,
            [find(self.source.metadata_columns[name], _setting_of(name)) for name in self.metadata.names],
        )


def _setting_of(name: str) -> str:
    """Return what to set if a shard is without a column of the metadata."""
    if name.startswith(CONTEXT_PREFIX):
        return f"a default in chunking.template, such as {{{name.removeprefix(CONTEXT_PREFIX)}|none}}"
    return "source.filter" if name.startswith(FILTER_PREFIX) else "source.metadata_columns"


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive records of a shard, as columns."""

    first_row: int
    texts: pa.Array
    ids: pa.Array | None
    """None: a document's id is its shard's uri and row."""
    metadata: list[pa.Array]
    refused: Refusals = field(default_factory=dict)
    kept: npt.NDArray[np.int64] | None = None
    """Positions of these records among the `num_read` that were read; None: all of them."""
    num_read: int = 0


@dataclass(frozen=True, slots=True)
class ShardColumns:
    """Columns found in one shard, or in several sampled together."""

    uri: str
    names: list[str]
    find_type: Callable[[str], pa.DataType | None]
    """None: the shard has no such key or column."""
    types: Literal["declared", "sampled", "untyped"]
    """Where types come from: the file, some of its values, or nowhere because every value is text."""


class ReadSamples(Protocol):
    """Samples a few shards of a format."""

    def __call__(self, read: Callable[[IO[bytes], Reading], T]) -> list[tuple[str, T]]:
        """Call `read` with the file of each shard and how it is read, and return its results by uri."""


def is_same(value: Any, text: str | None) -> bool:
    """Return whether a file's value is the one that a folder's name or a log gives as text."""
    if value is None or text is None or value == text:
        return value == text or (text is None and value == "")
    with suppress(*MISFITS):
        if isinstance(value, bool):
            return text.lower() == str(value).lower()
        if isinstance(value, int | float | Decimal):
            return bool(Decimal(str(value)) == Decimal(text))
        if isinstance(value, datetime):
            moment = datetime.fromisoformat(text)
            return value.replace(tzinfo=value.tzinfo or UTC) == moment.replace(tzinfo=moment.tzinfo or UTC)
        if isinstance(value, date):
            return value == date.fromisoformat(text)
    return str(value) == text


def excerpt(value: str | bytes) -> str:
    """Return the start of a value as valid UTF-8."""
    text = value[: 4 * EXCERPT_CHARS].decode(errors="replace") if isinstance(value, bytes) else value
    return text[:EXCERPT_CHARS].encode(errors="replace").decode()


def name_some(names: Iterable[str]) -> str:
    """Return the first names for a message, each shortened, and the number of the others."""
    found = list(names)
    shown = [name if len(name) <= _NAME_CHARS else f"{name[:_NAME_CHARS]}…" for name in found[:_MOST_NAMES]]
    others = len(found) - len(shown)
    return ", ".join(shown) + (f" and {others} more" if others else "")


def misfit_refuser(refused: Refusals, column: pa.Field) -> Refuse:
    """Return the callback that refuses a record for a metadata value that does not fit its column."""

    def refuse(position: int, value: object) -> None:
        refused.setdefault(position, (Reason.METADATA_TYPE, excerpt(f"{column.name}={excerpt_value(value)} is not {column.type}")))

    return refuse


def convert_ids(values: list[Any], refused: Refusals) -> pa.Array:
    """Convert Python ids to strings; refuse a value that is not a string or a number."""
    # pyarrow takes bytes for text
    if bytes not in map(type, values):
        with suppress(pa.ArrowException, UnicodeError):
            return pa.array(values, pa.string())
    ids: list[str | None] = []
    for position, value in enumerate(values):
        try:
            ids.append(None if value is None else to_id(value))
        except MISFITS:
            refused.setdefault(position, (Reason.MISSING_ID, excerpt(f"id={excerpt_value(value)} is not a string or a number")))
            ids.append(None)
    return pa.array(ids, pa.string())


def to_id(value: Any) -> str:
    """Return the document id of a string or number: 7 and 7.0 are both "7". Any other value, NaN or infinity raises ValueError."""
    if isinstance(value, str):
        value.encode()
        return value
    if isinstance(value, Decimal):
        # written out, up to the length of the largest double: 1e999999 is not
        return str(int(value)) if value.adjusted() < _MOST_ID_DIGITS and value == value.to_integral_value() else str(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and not isfinite(value)):
        raise ValueError("not a string or a number")
    return str(int(value)) if value == value // 1 else repr(value)


def join_texts(parts: list[pa.Array]) -> pa.Array:
    """Join the non-empty parts of each text by one space; a text is null only if every part is."""
    if len(parts) == 1:
        return parts[0]
    none = pa.scalar(None, pa.string())
    first, *others = [pc.if_else(pc.equal(pc.binary_length(part), 0), none, part) for part in parts]
    # pyarrow 26 drops a row in which all joined values are null
    never_all_null = pc.if_else(_all_null([first, *others]), "", first)
    joined = pc.binary_join_element_wise(never_all_null, *others, " ", null_handling="skip")
    return pc.if_else(_all_null(parts), none, joined)


def _all_null(columns: list[pa.Array]) -> pa.Array:
    return reduce(pc.and_, [column.is_null() for column in columns])
