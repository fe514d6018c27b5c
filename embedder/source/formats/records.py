"""Records as Python objects → Rows. The path that JSONL, CSV and text files share."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa

from embedder.core.schema import Reason
from embedder.source.decompression import read_blocks
from embedder.source.metadata_values import MISFITS, build_column, excerpt_value
from embedder.source.validation import Reading, Refusals, Rows, excerpt, join_texts, misfit_refuser, text_id

BATCH_RECORDS = 1024
BATCH_BYTES = 4 << 20

Getter = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Getters:
    """How the columns are taken from a record."""

    texts: tuple[Getter, ...]
    id: Getter | None
    metadata: tuple[Getter, ...]


@dataclass(slots=True)
class Records:
    """Consecutive records; a refused one holds a place with `placeholder` values, from which every getter takes None."""

    records: list[Any] = field(default_factory=list)
    refused: Refusals = field(default_factory=dict)

    def refuse(self, reason: Reason, met: str | bytes, placeholder: Any) -> None:
        """Add a record that cannot be read."""
        self.refused[len(self.records)] = (reason, excerpt(met))
        self.records.append(placeholder)


def batch_by_size(items: Iterable[tuple[Any, int]]) -> Iterator[list[Any]]:
    """Group items, given with their sizes in bytes, so that memory stays bounded by a batch or by one large item."""
    batch: list[Any] = []
    size_bytes = 0
    for item, item_bytes in items:
        batch.append(item)
        size_bytes += item_bytes
        if len(batch) >= BATCH_RECORDS or size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def to_rows(batches: Iterable[Records], getters: Getters, reading: Reading) -> Iterator[Rows]:
    """Take the columns out of each batch of records; what is not text, not an id or not of its type is refused."""
    first_row = 0
    for batch in batches:
        records, refused = batch.records, batch.refused
        texts = join_texts([_texts([get(record) for record in records], refused) for get in getters.texts])
        ids = None if getters.id is None else _ids([getters.id(record) for record in records], refused)
        metadata = [
            build_column([get(record) for record in records], column.type, misfit_refuser(refused, column.name, column.type))
            for get, column in zip(getters.metadata, reading.metadata, strict=True)
        ]
        yield Rows(first_row, texts, ids, metadata, refused)
        first_row += len(records)


def _texts(values: list[Any], refused: Refusals) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowException, UnicodeError):
        return pa.array([_text(value, refused, position) for position, value in enumerate(values)], pa.string())


def _text(value: Any, refused: Refusals, position: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        refused.setdefault(position, (Reason.NOT_TEXT, excerpt(excerpt_value(value))))
        return None
    try:
        value.encode()
    except UnicodeError:
        refused.setdefault(position, (Reason.UNDECODABLE, excerpt(value)))
        return None
    return value


def _ids(values: list[Any], refused: Refusals) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowException, UnicodeError):
        return pa.array([_id(value, refused, position) for position, value in enumerate(values)], pa.string())


def _id(value: Any, refused: Refusals, position: int) -> str | None:
    if value is None:
        return None
    try:
        return text_id(value)
    except MISFITS:
        refused.setdefault(position, (Reason.MISSING_ID, excerpt(f"id={excerpt_value(value)} is not a string or a number")))
        return None


def read_text(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the file as one text; it has no id and no metadata but nulls."""
    data = b"".join(read_blocks(file, reading.compression))
    records = Records()
    try:
        records.records.append(data.decode())
    except UnicodeDecodeError:
        records.refuse(Reason.UNDECODABLE, data, None)
    getters = Getters(texts=(lambda record: record,), id=None, metadata=tuple((lambda _: None) for _ in reading.metadata))
    yield from to_rows([records], getters, reading)
