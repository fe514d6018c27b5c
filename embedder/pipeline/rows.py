"""Rows between stages: tables as Arrow IPC bytes, and the context that every stage of a run shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from embedder.config.output import OutputConfig
from embedder.config.source import SourceConfig
from embedder.core.quantization import Ranges
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.table.reuse import PreviousParts

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StageContext:
    """What every stage of one run needs."""

    source: SourceConfig
    output: OutputConfig
    spec: EmbeddingSpec
    tokenizer_json: str
    """Empty: bytes are counted."""
    metadata: pa.Schema
    max_attempts: int
    calibration_uri: str | None
    ranges: Ranges | None
    """Of int8, which part footers carry too: a file found alone can be read."""
    probe: tuple[float, ...] | None
    """The table's probe vector, if it has one: an encoder that gives another one is refused."""
    run_id: str
    previous: PreviousParts | None = None
    """Vectors of parts that this run removes, for whichever task has their texts; None: each task looks into its own."""


def folder_of(context: StageContext) -> Location:
    """Locate the table's folder."""
    return context.output.location


def to_ipc(table: pa.Table) -> bytes:
    """Serialize a table; a row of Ray Data holds it as one value."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(data: bytes) -> pa.Table:
    """Read back what to_ipc wrote."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
