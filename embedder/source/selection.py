"""A listing and `source.filter` → the shards that may hold wanted records, and, as a shard is read, its wanted records.

Columns that folders or a table's log give decide whole shards, which are then neither read nor affected by another filter. What they
leave open is decided by record, before a record is checked: an id of a record that is left out is not taken. A row group of parquet whose
statistics exclude the filter is left out unread, and its records are counted as left out.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import IO

import numpy as np
import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, EmptySourceError
from embedder.source.columns import choose_types, inspect_source, repeats_text, with_context
from embedder.source.file_kinds import SHOWN_NAMES, Ignored
from embedder.source.filter import Filter, Group, columns_of, names_in, parse_filter, passes
from embedder.source.formats.registry import FileFormat
from embedder.source.formats.rows import FILTER_PREFIX, Reading, Rows
from embedder.source.metadata_types import name_of, parse_type
from embedder.source.metadata_values import MISFITS, converter
from embedder.source.shards import Listing, list_shards

FILTERED = "left out by source.filter"
_SETTING = "source.filter="


def select_shards(source: SourceConfig, listing: Listing, known: pa.Schema | None = None) -> tuple[Listing, pa.Schema]:
    """Return the shards that may hold wanted records, each with the filter if its records must be tested, and the metadata's schema.

    `known`: the columns of an existing table. Raise ConfigError for a wrong column or filter, EmptySourceError if no shard is left.
    """
    if source.filter is None or not len(listing.shards):
        return listing, inspect_source(source, listing.shards, known, listing.types)
    names = names_in(source.filter, _SETTING)
    wanted = source.model_copy(update={"metadata_columns": {**source.metadata_columns, **{FILTER_PREFIX + name: name for name in names}}})
    found = inspect_source(wanted, listing.shards, known, listing.types)
    metadata = pa.schema([field for field in found if not field.name.startswith(FILTER_PREFIX)])
    # a column that is also metadata is compared in the type that the table has
    types = choose_types(source, metadata)
    schema = pa.schema([(name, types.get(name, found.field(FILTER_PREFIX + name).type)) for name in names])
    where = parse_filter(source.filter, schema, _SETTING)
    row_filter = json.dumps({"filter": source.filter, "types": {field.name: _name_type(field) for field in schema}}, sort_keys=True)
    shards = listing.shards
    verdicts = {each: _decide(where, _typed(dict(each), schema)) for each in {kind.constants for kind in shards.kinds}}
    kinds = [kind if verdicts[kind.constants] else replace(kind, row_filter=row_filter) for kind in shards.kinds]
    is_left_out = np.array([verdicts[kind.constants] is False for kind in shards.kinds])[shards.kind]
    kept, left_out = replace(shards, kinds=tuple(kinds)).select(np.flatnonzero(~is_left_out)), np.flatnonzero(is_left_out)
    if not len(kept):
        raise EmptySourceError(f"{_SETTING}{source.filter!r}: no shard of {source.uri} passes ({len(left_out):,} are left out)")
    uris = shards.uris.take(pa.array(left_out[:SHOWN_NAMES])).to_pylist()
    ignored = {**listing.ignored, FILTERED: Ignored(len(left_out), tuple(uris))} if uris else listing.ignored
    return replace(listing, shards=kept, ignored=ignored), metadata


def has_columns(source: SourceConfig, template: str) -> bool:
    """Return whether a source has the columns of a template, which are not in the text already. Without them, it can be read."""
    source = with_context(source, template)
    if repeats_text(source, template):
        return False
    try:
        select_shards(source, list_shards(source))
    except ConfigError:
        return False
    return True


def _name_type(field: pa.Field) -> str:
    name = name_of(field.type)
    if name is None:
        raise ConfigError(f"{_SETTING}: column {field.name!r} is {field.type}, which no filter can compare; leave it out")
    return name


def _typed(constants: dict[str, str | None], schema: pa.Schema) -> pa.RecordBatch:
    """Return one row of the columns that are known; a value that does not fit its type is left for the reader to quarantine."""
    columns = {}
    for field in schema:
        if field.name in constants:
            value = constants[field.name]
            try:
                columns[field.name] = pa.array([None if value is None else converter(field.type)(value)], field.type)
            except MISFITS:
                continue
    return pa.record_batch(columns) if columns else pa.record_batch({"": pa.nulls(1)})


def _decide(where: Filter, row: pa.RecordBatch) -> bool | None:
    """Return whether every record with these values passes, or none does; None: other columns decide."""
    if not isinstance(where, Group):
        return bool(passes(where, row)[0]) if where.column in row.schema.names else None
    verdicts = {_decide(part, row) for part in where.parts}
    if where.joined_by == "and":
        return False if False in verdicts else None if None in verdicts else True
    return True if True in verdicts else None if None in verdicts else False


@cache
def _parse(row_filter: str) -> tuple[Filter, pa.Schema]:
    stored = json.loads(row_filter)
    schema = pa.schema([(name, parse_type(type_)) for name, type_ in stored["types"].items()])
    return parse_filter(stored["filter"], schema, _SETTING), schema


def read_rows(format_: FileFormat, file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read a shard's rows, without records that do not pass its filter. A record that was read and cannot be tested is kept, as refused."""
    if not reading.shard.row_filter:
        yield from format_.read(file, reading)
        return
    where, schema = _parse(reading.shard.row_filter)
    names = columns_of(where)
    columns = {**reading.source.metadata_columns, **{FILTER_PREFIX + name: name for name in names}}
    metadata = pa.schema([*reading.metadata, *(pa.field(FILTER_PREFIX + name, schema.field(name).type) for name in names)])
    source = reading.source.model_copy(update={"metadata_columns": columns})
    for rows in format_.read(file, replace(reading, source=source, metadata=metadata, tested=(where, schema))):
        tested = pa.record_batch(rows.metadata[len(reading.metadata) :], names)
        is_kept = passes(where, tested)
        is_kept[list(rows.refused)] = True
        yield _keep(rows, np.flatnonzero(is_kept), len(reading.metadata))


def _keep(rows: Rows, kept: np.ndarray, num_metadata: int) -> Rows:
    taken = pa.array(kept)
    refused = {position: rows.refused[row] for position, row in enumerate(kept.tolist()) if row in rows.refused}
    ids = None if rows.ids is None else rows.ids.take(taken)
    metadata = [column.take(taken) for column in rows.metadata[:num_metadata]]
    # a format may itself have left records out
    read, num_read = (np.arange(len(rows.texts)), len(rows.texts)) if rows.kept is None else (rows.kept, rows.num_read)
    return Rows(rows.first_row, rows.texts.take(taken), ids, metadata, refused, read[kept], num_read)
