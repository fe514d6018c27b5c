"""What a vector store must be able to do, and what it remembers of the table whose rows it holds."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedder.core.quantization import Ranges
from embedder.core.spec import EmbeddingSpec, Quantization
from embedder.search.exact import Hit
from embedder.search.filter import Filter

Vector = npt.NDArray[np.float32] | npt.NDArray[np.int8] | npt.NDArray[np.uint8]

STATE_NAME = "embedder_loads"
"""The store's own table or collection that holds a `Loaded` for each name."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """How far a store has followed its table. Kept in the store, written before and after each step of a load."""

    table_id: str
    """Delta's id of the table, which moves with it."""
    spec: EmbeddingSpec
    schema: pa.Schema
    """The table's columns as they were loaded."""
    ranges: Ranges | None
    """Of int8 vectors."""
    version: int | None
    """The table version all of whose rows are here, and no other; None until the first load has ended."""
    target: int | None = None
    """The version that a load is on its way to; None when none is."""
    done: int = 0
    """Parts of the target, in order of name, that a first load has written."""

    def to_json(self) -> str:
        """Write it as one line of JSON."""
        ranges = _to_base64(np.stack([self.ranges.low_D, self.ranges.high_D]).tobytes()) if self.ranges else None
        what = {"table_id": self.table_id, "space_id": self.spec.space_id, "spec": self.spec.model_dump(), "ranges": ranges}
        schema = _to_base64(self.schema.serialize().to_pybytes())
        return json.dumps(what | {"schema": schema, "version": self.version, "target": self.target, "done": self.done})

    @staticmethod
    def from_json(text: str) -> "Loaded":
        """Read what to_json wrote."""
        values: dict[str, Any] = json.loads(text)
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["schema"])))
        spec = EmbeddingSpec.model_validate(values["spec"])
        bounds_2D = np.frombuffer(base64.b64decode(values["ranges"] or ""), np.float32).reshape(2, -1)
        ranges = Ranges(*bounds_2D) if values["ranges"] else None
        return Loaded(values["table_id"], spec, schema, ranges, values["version"], values["target"], values["done"])


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class VectorStore(Protocol):
    """One named table, or collection, of a store.

    Rows are those of rows.store_schema: the table's, with `row_id` before them and vectors of fixed size. `record` comes
    before anything is written. What is written between two calls of it either becomes visible with the second one, or is
    safe to write again: `append` is only called with rows that are not there, `upsert` and `delete` end the same however
    often they are called.
    """

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    @property
    def quantizations(self) -> frozenset[Quantization]:
        """The vectors it has a type for."""

    def exists(self) -> bool:
        """Tell whether there is a table of this name, whoever made it."""

    def loaded(self) -> Loaded | None:
        """Read what `record` wrote last; None if nothing."""

    def record(self, loaded: Loaded) -> None:
        """Remember how far a load has come, and make everything written before it durable."""

    def create(self, loaded: Loaded) -> None:
        """Make an empty table for these columns in place of the one that is there, if any."""

    def append(self, rows: Iterator[pa.Table]) -> None:
        """Write rows that are not there yet, by the store's fastest way."""

    def upsert(self, rows: Iterator[pa.Table]) -> None:
        """Write rows in place of those with the same `row_id`."""

    def delete(self, row_ids: list[str]) -> None:
        """Remove rows, if they are there."""

    def count(self) -> int:
        """Count the rows."""

    def build_index(self) -> str:
        """Build or bring up to date what the settings ask for; say in a few words what there is now."""

    def search(self, query_D: Vector, top: int, where: Filter | None) -> list[Hit]:
        """Find the rows of the greatest inner product with the query, best first, without their vectors."""

    def close(self) -> None:
        """Let go of files and connections."""
