"""Settings become a run that is checked and planned, before the first document is read; or one message with every problem."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from embedder.config.embed import EmbedConfig
from embedder.core.errors import ConfigError, EmbedderError, EmptySourceError
from embedder.core.plan import Plan, choose_bucket_bits, group_shards, plan_work
from embedder.core.schema import table_schema
from embedder.core.spec import EmbeddingSpec, digest
from embedder.model.backends import check_backend
from embedder.model.resolve import ResolvedModel, looks_wrong, resolve_model
from embedder.run.quality_gate import check_quality_gate
from embedder.source.columns import inspect_source
from embedder.source.shards import Listing, list_shards, refuse_own_source
from embedder.table.delta import TableState, read_table
from embedder.table.parts import list_parts

PART_VERSION = 1
"""Raised when a part's bytes change under unchanged settings, so that old and new parts are told apart by name."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run that is checked and planned, before the first document is read."""

    config: EmbedConfig
    model: ResolvedModel
    listing: Listing
    metadata: pa.Schema
    table: TableState | None
    bucket_bits: int
    plan: Plan

    @property
    def spec(self) -> EmbeddingSpec:
        """The space the table's vectors are in after this run."""
        return self.model.spec

    @property
    def schema(self) -> pa.Schema:
        """The table's columns after this run."""
        return table_schema(self.metadata, self.config.output.store_text, self.spec.quantization)

    @property
    def same_space(self) -> bool:
        """Whether the table holds vectors of this run's space, which then may be kept."""
        return self.table is not None and self.table.spec.space_id == self.spec.space_id

    @property
    def replaces(self) -> bool:
        """Whether the commit swaps everything: another spec, or other columns. No part can be kept then, and none is dropped."""
        return self.table is not None and not self.plan.keep and not (self.same_space and self.table.schema.equals(self.schema))


def prepare_run(config: EmbedConfig, begin: Callable[[EmbedConfig], object] = lambda _: None) -> RunPlan:
    """Check all that can be checked without reading documents, and plan; ConfigError holds every problem found.

    `begin` is called as soon as it is clear that there is work, shards and no table yet, and nothing that is quick to see is wrong;
    before the model is looked at closely, which takes seconds.
    """
    problems: list[str] = []
    _collect(problems, lambda: check_backend(config.compute.backend))
    _collect(problems, lambda: refuse_own_source(config))
    table = _collect(problems, lambda: read_table(config.output.location))
    listing = _collect(problems, lambda: list_source(config, table))
    metadata = None
    if listing:
        columns = table.schema if table else None
        metadata = _collect(problems, lambda: inspect_source(config.source, listing.shards, columns))
    if table is None and not problems and not looks_wrong(config.embedding):
        begin(config)
    model = _collect(problems, lambda: resolve(config))
    if model:
        spec = model.spec
        _collect(problems, lambda: check_quality_gate(config, spec))
    if model and table and table.spec.space_id != model.spec.space_id and not config.output.replace:
        changes = "; ".join(table.spec.differences(model.spec))
        problems.append(
            f"output.uri={config.output.uri!r}: the table holds another space ({changes}); "
            "choose another output.uri, or swap all of it with --output.replace true"
        )
    if problems or model is None or listing is None or metadata is None:
        raise ConfigError("\n".join(problems))
    keeps = table is not None and table.spec.space_id == model.spec.space_id
    bits = int(table.info["bucket_bits"]) if table and keeps else choose_bucket_bits(listing.shards)
    tasks = group_shards(listing.shards, layout_of(config, model.spec, metadata), bits)
    stored = list_parts(config.output.location)
    committed = table.parts if table else []
    known = set(committed)
    plan = plan_work(tasks, committed, [name for name in stored if name not in known])
    return RunPlan(config, model, listing, metadata, table, bits, plan)


def resolve(config: EmbedConfig) -> ResolvedModel:
    """Fill every default of the model's, which is here or behind an API."""
    if not config.embedding.is_api:
        return resolve_model(config.embedding, config.chunking)
    from embedder.model.api_spec import resolve_api  # extra openai

    return resolve_api(config.embedding, config.chunking)


def list_source(config: EmbedConfig, table: TableState | None) -> Listing:
    """List the shards; none at all empties a table only if told to."""
    try:
        return list_shards(config.source)
    except EmptySourceError as error:
        if table is None:
            raise
        if config.output.max_removed_fraction < 1:
            raise ConfigError(
                f"{error}; the table keeps its {sum(table.rows.values()):,} rows, to empty it insist with --output.max_removed_fraction 1"
            ) from error
        return Listing(())


def layout_of(config: EmbedConfig, spec: EmbeddingSpec, metadata: pa.Schema) -> str:
    """Digest what besides the documents decides a part's bytes: space, columns, and how records are read and cut."""
    source = config.source.model_dump(mode="json", include={"format", "text_columns", "id_column", "metadata_columns", "rows_per_unit"})
    return digest(PART_VERSION, spec.space_id, source, str(metadata), config.output.store_text)


def _collect(problems: list[str], check: Callable[[], T]) -> T | None:
    """Run a check, keeping its complaint so that all are reported at once."""
    try:
        return check()
    except EmbedderError as error:
        problems.append(str(error))
        return None
