"""Settings → a checked and planned run, before the first document is read; or one ConfigError with every problem."""

from dataclasses import dataclass, replace

import pyarrow as pa

from embedder.config.embed import EmbedConfig
from embedder.core.columns import PartNames, Shards
from embedder.core.context import drop_context
from embedder.core.errors import ConfigError, EmptySourceError
from embedder.core.plan import Plan, choose_bucket_bits, group_shards, plan_work
from embedder.core.problems import Problems
from embedder.core.schema import table_schema
from embedder.core.spec import EmbeddingSpec, digest
from embedder.model.backends import check_backend
from embedder.model.defaults import HasColumns
from embedder.model.resolve import ResolvedModel, looks_wrong, resolve_model
from embedder.run.quality_gate import check_quality_gate
from embedder.source.columns import repeats_text, with_context
from embedder.source.selection import select_shards
from embedder.source.shards import Listing, list_shards, refuse_own_source
from embedder.table.delta import TableState, read_table
from embedder.table.parts import QUARANTINE_FOLDER, check_stored, list_parts

PART_VERSION = 1
"""Part of every part's name. Raise it when a part's bytes change under unchanged settings."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The source and the table of a run, before the model's files are read."""

    config: EmbedConfig
    problems: Problems
    table: TableState | None
    listing: Listing | None
    metadata: pa.Schema | None

    @property
    def will_embed(self) -> bool:
        """Whether the run is certain to embed: a first run without a problem so far. A table may already match its source."""
        return self.table is None and not self.problems.found and not looks_wrong(self.config.embedding)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A checked and planned run."""

    config: EmbedConfig
    model: ResolvedModel
    listing: Listing
    metadata: pa.Schema
    """Columns of the template included."""
    table: TableState | None
    bucket_bits: int
    plan: Plan

    @property
    def spec(self) -> EmbeddingSpec:
        """The space of the table's vectors after this run."""
        return self.model.spec

    @property
    def schema(self) -> pa.Schema:
        """The table's columns after this run."""
        return table_schema(drop_context(self.metadata.empty_table()).schema, self.config.output.store_text, self.spec.quantization)

    @property
    def same_space(self) -> bool:
        """Whether the table's vectors are of this run's space, so that they can be kept."""
        return self.table is not None and self.table.spec.space_id == self.spec.space_id

    @property
    def replaces(self) -> bool:
        """Whether the commit replaces the whole table, because its spec or its columns change and no part can be kept."""
        return self.table is not None and not self.plan.keep and not (self.same_space and self.table.schema.equals(self.schema))


def prepare_run(config: EmbedConfig) -> RunPlan:
    """Check and plan a run in one call."""
    return plan_run(inspect_inputs(config))


def inspect_inputs(config: EmbedConfig) -> Inputs:
    """List the source, read the table, and run the checks that take less than a second; StorageError if either is unreachable."""
    problems = Problems()
    problems.check(lambda: check_backend(config.compute.backend))
    problems.check(lambda: refuse_own_source(config))
    table = problems.check(lambda: read_table(config.output.location))
    selected = problems.check(lambda: select_source(config, table))
    listing, metadata = selected or (None, None)
    return Inputs(config, problems, table, listing, metadata)


def plan_run(inputs: Inputs) -> RunPlan:
    """Read the model's files, which takes seconds, and plan the run; ConfigError holds every problem found."""
    problems = inputs.problems
    inputs, model = problems.check(lambda: resolve_with_titles(inputs)) or (inputs, None)
    config, table, listing, metadata = inputs.config, inputs.table, inputs.listing, inputs.metadata
    if model:
        spec = model.spec
        problems.check(lambda: check_quality_gate(config, spec))
        problems.check(lambda: check_space(config, spec, table))
    problems.raise_all()
    assert model is not None
    assert listing is not None
    assert metadata is not None
    model.log_guesses()
    keeps = table is not None and table.spec.space_id == model.spec.space_id
    bits = int(table.info["bucket_bits"]) if table and keeps else choose_bucket_bits(listing.shards)
    tasks = group_shards(listing.shards, layout_of(config, model.spec, metadata), bits)
    stored = list_parts(config.output.location)
    if table and keeps:
        check_stored(table.sizes, stored, config.output.uri)
    committed = table.parts if table else PartNames.of(())
    left = PartNames.parse(name for name in stored if not table or name not in table.rows)
    plan = plan_work(tasks, committed, left)
    return RunPlan(config, model, listing, metadata, table, bits, plan)


def check_space(config: EmbedConfig, spec: EmbeddingSpec, table: TableState | None) -> None:
    """Refuse to change a table's space unless the settings allow it."""
    if table and table.spec.space_id != spec.space_id and not config.output.replace:
        raise ConfigError(
            f"output.uri={config.output.uri!r}: the table holds another space ({'; '.join(table.spec.differences(spec))}); "
            "choose another output.uri, or swap all of it with --output.replace true"
        )


def resolve_with_titles(inputs: Inputs) -> tuple[Inputs, ResolvedModel]:
    """Resolve the model, and select the source once more if a template with titles is a default: of a new table whose source has them,
    or of a table that was made with it."""
    titled = inputs

    def add_template(template: str) -> bool:
        nonlocal titled
        config, table = inputs.config, inputs.table
        if inputs.problems.found or (table and table.spec.template != template) or repeats_text(config.source, template):
            return False
        config = config.model_copy(update={"chunking": config.chunking.model_copy(update={"template": template})})
        try:
            listing, metadata = select_source(config, table)
        except ConfigError:
            if table:
                raise
            return False
        titled = replace(inputs, config=config, listing=listing, metadata=metadata)
        return True

    model = resolve(inputs.config, add_template)
    return titled, model


def resolve(config: EmbedConfig, has_columns: HasColumns | None = None) -> ResolvedModel:
    """Fill in the defaults of a local model, or of one behind an API."""
    if not config.embedding.is_api:
        return resolve_model(config.embedding, config.chunking, has_columns)
    from embedder.model.api_spec import resolve_api  # extra openai

    return resolve_api(config.embedding, config.chunking)


def select_source(config: EmbedConfig, table: TableState | None) -> tuple[Listing, pa.Schema]:
    """Return the shards to read and the metadata's schema; a source without any is refused unless the settings let it empty the table."""
    tables = [config.output.location, *(cut.location for cut in config.output.cuts)]
    own = {each.open().place for location in tables for each in (location, location.child(QUARANTINE_FOLDER))}
    known, source = table.schema if table else None, with_context(config.source, config.chunking.template)
    try:
        return select_shards(source, list_shards(source, own), known)
    except EmptySourceError as error:
        if table is None:
            raise
        if config.output.max_removed_fraction < 1:
            raise ConfigError(
                f"{error}; the table keeps its {sum(table.rows.values()):,} rows, to empty it insist with --output.max_removed_fraction 1"
            ) from error
        return select_shards(source, Listing(Shards.of(())), known)


def layout_of(config: EmbedConfig, spec: EmbeddingSpec, metadata: pa.Schema) -> str:
    """Return a digest of the settings, besides the documents, that decide a part's bytes."""
    source = config.source.model_dump(mode="json", include={"format", "text_columns", "id_column", "metadata_columns", "rows_per_unit"})
    if not config.source.is_postgres:
        # of a database file: those of PostgreSQL are in the uris of its shards
        source |= config.source.model_dump(mode="json", include={"table", "key_column"}, exclude_none=True)
    return digest(PART_VERSION, spec.space_id, source, str(metadata), config.output.store_text)
