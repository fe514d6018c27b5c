"""The protocol of vector stores, and the state that a store keeps about its table."""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedder.core.quantization import Ranges
from embedder.core.spec import EmbeddingSpec, Quantization
from embedder.search.exact import Hit
from embedder.source.filter import Filter
from embedder.stores.fitting import Mask

Vector = npt.NDArray[np.float32] | npt.NDArray[np.int8] | npt.NDArray[np.uint8]

STATE_NAME = "embedder_loads"
"""Table or collection that holds a `Loaded` by name."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """State of a load. Kept in the store; written before and after each step."""

    table_id: str
    """Delta's table id, which survives a move of the table."""
    spec: EmbeddingSpec
    schema: pa.Schema
    """Columns of the table when it was loaded."""
    ranges: Ranges | None
    """Ranges of int8 vectors."""
    version: int | None
    """Version whose rows, and no others, are in the store; None until the first load ends."""
    target: int | None = None
    """Version that a load in progress goes to; None without one."""
    done: int = 0
    """Parts of the target, in order of name, that a first load wrote."""
    left_out: tuple[str, ...] = ()
    """Ids of rows that the store cannot hold."""

    def to_json(self) -> str:
        """Return the state as one line of JSON."""
        ranges = _to_base64(np.stack([self.ranges.low_D, self.ranges.high_D]).tobytes()) if self.ranges else None
        what = {"table_id": self.table_id, "space_id": self.spec.space_id, "spec": self.spec.model_dump(), "ranges": ranges}
        schema = _to_base64(self.schema.serialize().to_pybytes())
        progress = {"version": self.version, "target": self.target, "done": self.done, "left_out": self.left_out}
        return json.dumps(what | {"schema": schema} | progress)

    @staticmethod
    def from_json(text: str) -> "Loaded":
        """Read the state from to_json's line."""
        values: dict[str, Any] = json.loads(text)
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["schema"])))
        spec = EmbeddingSpec.model_validate(values["spec"])
        bounds_2D = np.frombuffer(base64.b64decode(values["ranges"] or ""), np.float32).reshape(2, -1)
        ranges = Ranges(*bounds_2D) if values["ranges"] else None
        progress = values["version"], values["target"], values["done"], tuple(values.get("left_out", ()))
        return Loaded(values["table_id"], spec, schema, ranges, *progress)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class VectorStore(Protocol):
    """A named table or collection of a store, with rows of rows.store_schema.

    `record` is called before anything is written. Writes between two calls of it either become visible with the second,
    or are safe to repeat: `append` gets new rows only; `upsert` and `delete` are idempotent.
    """

    @property
    def place(self) -> str:
        """Its name in messages."""

    @property
    def quantizations(self) -> frozenset[Quantization]:
        """Vector types that it can hold."""

    def exists(self) -> bool:
        """Return whether a table of this name exists, whether or not a load made it."""

    def loaded(self) -> Loaded | None:
        """Read the last recorded state; None without one."""

    def record(self, loaded: Loaded) -> None:
        """Write the state, and make all earlier writes durable."""

    def create(self, loaded: Loaded) -> None:
        """Replace the table, if any, by an empty one with these columns."""

    def find_unfit(self, rows: pa.Table, /) -> Mapping[str, Mask]:
        """Return by reason the rows that it cannot hold; they are left out."""

    def find_altered(self, rows: pa.Table, /) -> Mapping[str, Mask]:
        """Return by change the rows of which it holds a value in another form only; they are counted."""

    def append(self, rows: Iterator[pa.Table]) -> None:
        """Write new rows by the fastest way."""

    def upsert(self, rows: Iterator[pa.Table]) -> None:
        """Write rows, replacing those with the same `row_id`."""

    def delete(self, row_ids: list[str]) -> None:
        """Remove rows; missing ones are ignored."""

    def count(self) -> int:
        """Count the rows."""

    def build_index(self) -> str:
        """Build or update the index that the settings ask for; return its name in a few words."""

    def search(self, query_D: Vector, top: int, where: Filter | None) -> list[Hit]:
        """Return the rows with the greatest inner product, best first, without vectors."""

    def close(self) -> None:
        """Close files and connections."""
