"""Rows between stages, with their tables as Arrow IPC bytes, and the context that every stage of a run shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa

from embedder.config.output import OutputConfig
from embedder.config.source import SourceConfig
from embedder.core.quantization import Ranges
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.table.hash_index import NO_INDEX, HashIndex

Row = Mapping[str, Any]
"""A row of any stage."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """Values that every stage of one run needs."""

    source: SourceConfig
    output: OutputConfig
    spec: EmbeddingSpec
    tokenizer_json: str
    """Empty: bytes are counted."""
    metadata: pa.Schema
    max_attempts: int
    calibration_uri: str | None
    ranges: Ranges | None
    """For int8. Part footers carry them too, so that a part is readable on its own."""
    probe: tuple[float, ...] | None
    """The table's probe vector, if it has one. An encoder that computes another vector is refused."""
    run_id: str
    index: HashIndex = NO_INDEX
    """Finds the parts with vectors of a text, wherever it was; only the first stage has it."""

    @property
    def folder(self) -> Location:
        """The table's folder."""
        return self.output.location


class TaskRow(TypedDict):
    """Input of the first stage."""

    task: dict[str, Any]
    """Of core.units.Task.fields."""
    done: list[str]
    """Names of the task's parts that are already on storage."""
    previous: list[str]
    """Names of parts to be removed whose vectors the task may reuse."""


class TasksRow(TypedDict):
    """Input of the first stage on Ray: some tasks, as JSON of TaskRow. Ray takes milliseconds and 20 kB for each of its rows."""

    tasks: bytes
    size: int
    """Most units of a row that the reader yields."""


class PreparedUnit(TypedDict):
    """A unit that has been read and tokenized."""

    documents: bytes
    """schema.DOCUMENTS and the metadata."""
    chunks: bytes
    """schema.CHUNKS of documents without reusable vectors; empty: the encoder's actor makes them."""
    reused: bytes
    """reuse.REUSED and the column `embedding`."""
    quarantined: bytes
    """schema.QUARANTINE."""
    stats: dict[str, Any]
    """Fields of core.units.Stats."""


class EncodedUnit(PreparedUnit):
    """A unit with its vectors; `chunks` no longer holds token ids."""

    codes: bytes
    """Quantized vectors, one for each chunk."""
    sample: bytes
    """Candidates of chunk_sample.SAMPLE; empty if there are none."""
    rejected: list[int]
    """Documents that cannot be embedded and have no chunks left."""
    reasons: list[str]
    """A Reason for each rejected document."""
    attempt: int
    """Counted from 1 over all workers and runs; 0: the unit was not marked."""


class _UnitRow(TypedDict):
    key: str
    """Of the task."""
    name: str | None
    """Of the unit's part; None: the task failed."""
    error: str | None
    broken: list[str]
    """Shards of a failed bucket that cannot be read."""


class PreparedRow(_UnitRow):
    """One unit, or the failure of its task. `unit` is None after a failure, and for a part that is already on storage."""

    unit: PreparedUnit | None


class EncodedRow(_UnitRow):
    """A PreparedRow after the encoder."""

    unit: EncodedUnit | None
    probe: list[float]
    """The encoder's probe vector."""


class ReasonCount(TypedDict):
    """Quarantined records of one reason."""

    reason: str
    count: int


class LandedRow(TypedDict):
    """Output of the last stage."""

    key: str
    part: dict[str, Any] | None
    """Fields of core.units.Part; None: the task failed."""
    error: str | None
    broken: list[str]
    reasons: list[ReasonCount]
    probe: list[float]
    attempt: int
    tokens: int
    """Embedded in this run."""
    sample: bytes
    """As in EncodedUnit."""


def to_ipc(table: pa.Table) -> bytes:
    """Return a table as Arrow IPC bytes, which a row of Ray Data holds as one value."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(data: bytes) -> pa.Table:
    """Return the table of to_ipc."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
