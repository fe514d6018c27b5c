"""Open a table with the encoder of its queries, for notebooks and pipelines."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from embedder.core.errors import ConfigError
from embedder.core.quantization import Floats
from embedder.core.rotation import read_rotation
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.search.exact import Hit, Target
from embedder.search.exact import open_table as open_target
from embedder.search.table_model import choose_model
from embedder.source.filter import parse_filter

if TYPE_CHECKING:
    from embedder.search.query_encoder import QueryEncoder


NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


def open_table(
    uri: str, options: Mapping[str, Any] = NO_OPTIONS, device: str = "cpu", dtype: str = "float32", model: str | None = None
) -> "SearchableTable":
    """Open the newest version of a table for exact search; `options` are those of its filesystem, like output.storage_options.

    `model` replaces the name of the model in the table's log, and is needed if that is package:NAME.

    table = embedder.open_table("s3://bucket/table")
    for hit in table.search("split a path into folder and file", top=3, where="year > 2000"):
        print(hit.score, hit.row["doc_id"])
    """
    location = Location(uri, dict(options))
    return SearchableTable(open_target(location), device, dtype, model)


class SearchableTable:
    """A table and the encoder of its queries, which is loaded on first use."""

    def __init__(self, target: Target, device: str, dtype: str, model: str | None) -> None:
        self._target, self._device, self._dtype, self._model = target, device, dtype, model

    @property
    def spec(self) -> EmbeddingSpec:
        """The spec of the table's vectors."""
        return self._target.spec

    @cached_property
    def encoder(self) -> "QueryEncoder":
        """The encoder of the table's queries."""
        from embedder.search.query_encoder import QueryEncoder  # brings torch: seconds

        spec = choose_model(self.spec, self._model)
        return QueryEncoder(spec, self._device, self._dtype, read_rotation(spec, self._target.table))

    def encode(self, queries: Sequence[str]) -> Floats:
        """Return the vectors of queries, (N, dim), comparable with the table's."""
        return self.encoder.encode(queries)

    def search(self, query: str | Floats, top: int = 5, where: str | None = None) -> list[Hit]:
        """Return the rows nearest to a text or to a vector of `encode`, best first; `where` is a condition, like jobs.search --filter."""
        if top < 1:
            raise ConfigError(f"top={top}: must be at least 1")
        condition = parse_filter(where, self._target.schema) if where else None
        return self._target.find(self.encode([query])[0] if isinstance(query, str) else query, top, condition)
