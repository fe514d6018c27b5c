"""A few shards → the metadata's schema, before the first document is read; or one ConfigError with all problems."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TypeVar

import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.columns import Numbers, Shards
from embedder.core.context import CONTEXT_PREFIX, OPTIONAL_SUFFIX, name_columns
from embedder.core.errors import ConfigError, SourceError
from embedder.core.storage import map_threads
from embedder.core.units import Shard
from embedder.source.decompression import open_shard
from embedder.source.formats.registry import FileFormat, encoding_of, group_by_format
from embedder.source.formats.rows import FILTER_PREFIX, Reading, ShardColumns, has_default
from embedder.source.metadata_casts import can_cast
from embedder.source.metadata_types import is_id, is_text, name_type, parse_type, to_delta_type, unify_types

T = TypeVar("T")

NUM_SAMPLED_SHARDS = 4
MOST_TRIED = 16
"""Shards of a format to try before the source counts as unreadable."""
_SHOWN = 30
NO_TYPES: Mapping[str, pa.DataType] = {}


def inspect_source(
    source: SourceConfig, shards: Iterable[Shard], known: pa.Schema | None = None, types: Mapping[str, pa.DataType] = NO_TYPES
) -> pa.Schema:
    """Return the schema of the metadata after sampling shards of each format.

    A type comes from `source.metadata_types`, else from `known` (an existing table), else from the shards, else from `types`: columns
    that folders or a table's log give, so that a file need not have them. A ConfigError lists all problems, one per line. A shard that
    cannot be opened is skipped, for the run to report; SourceError if all are.
    """
    by_format, problems = _inspect_formats(source, Shards.of(shards), types)
    sampled = [each for columns in by_format for each in columns]
    optional = {key for key in source.metadata_columns.values() if has_default(source, key)}
    found = {key for key in optional if any(each.find_type(key) is not None for each in sampled)}  # other formats may be without
    problems += [problem for columns in by_format for problem in _check_columns(source, columns, {*types, *found})]
    fields = []
    for name, key in source.metadata_columns.items():
        try:
            fields.append(pa.field(name, _choose_type(name, key, source, known, sampled, types.get(key))))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return pa.schema(fields)


def with_context(source: SourceConfig, template: str | None) -> SourceConfig:
    """Return a source that also reads the columns of a chunk's template, as text, each by its name in the metadata or by its key."""
    keys = {column: source.metadata_columns.get(name, name) for name, column in name_columns(template).items()}
    columns, types = source.metadata_columns | keys, source.metadata_types | dict.fromkeys(keys, "string")
    return source.model_copy(update={"metadata_columns": columns, "metadata_types": types})


def repeats_text(source: SourceConfig, template: str) -> bool:
    """Return whether a column of the template is also one of the text."""
    context = with_context(source, template).metadata_columns
    return any(key in source.text_columns for name, key in context.items() if name.startswith(CONTEXT_PREFIX))


def choose_types(source: SourceConfig, metadata: pa.Schema) -> dict[str, pa.DataType]:
    """Return the types of the source's columns that are metadata, by their names in the source."""
    return {key: metadata.field(name).type for name, key in source.metadata_columns.items() if not name.startswith(CONTEXT_PREFIX)}


def _inspect_formats(source: SourceConfig, shards: Shards, types: Mapping[str, pa.DataType]) -> tuple[list[list[ShardColumns]], list[str]]:
    problems = list(_refuse_tables(source, shards))
    if len(shards) and (shards[0].columns or shards[0].fragment):
        # the table declares its columns, and a file may hold another one under the same name
        return [[ShardColumns(source.uri, list(types), types.get, "declared")]], problems
    columns: list[list[ShardColumns]] = []
    failure: SourceError | None = None
    for format_, rows in group_by_format(shards, source.format).items():
        try:
            columns.append(_inspect(format_, shards, rows, source, types))
        except ConfigError as error:
            problems.append(str(error))
        except SourceError as error:
            failure = failure or error
    if failure and not any(columns) and not problems:
        raise failure
    return columns, problems


def _refuse_tables(source: SourceConfig, shards: Shards) -> Iterator[str]:
    """Yield the problem that the settings name a table or its key, and a shard is not a database."""
    named = [f"source.{name}={value!r}" for name in ("table", "key_column") if (value := getattr(source, name)) is not None]
    for format_, rows in group_by_format(shards, source.format).items() if named else ():
        if not format_.has_tables:
            yield f"{', '.join(named)}: {shards[int(rows[0])].uri} is not a database; leave it out, or narrow source.uri"


def _inspect(
    format_: FileFormat, shards: Shards, rows: Numbers, source: SourceConfig, types: Mapping[str, pa.DataType]
) -> list[ShardColumns]:
    def read_samples(read: Callable[[IO[bytes], Reading], T]) -> list[tuple[str, T]]:
        return _read_samples(shards, rows, source, read)

    if format_.inspect:
        with _located(f"source.uri={source.uri!r}"):
            return format_.inspect(read_samples)
    absent = {name: key for name, key in source.metadata_columns.items() if key not in types}
    if absent or (source.id_column and source.id_column not in types):
        wanted = _name_setting(*next(iter(absent.items()))) if absent else f"source.id_column={source.id_column!r}"
        raise ConfigError(f"{wanted}: {shards[int(rows[0])].uri} is a text file, which has no columns; leave it out, or narrow source.uri")
    return []


def _read_samples(shards: Shards, found: Numbers, source: SourceConfig, read: Callable[[IO[bytes], Reading], T]) -> list[tuple[str, T]]:
    """Read a few shards spread over the list, and others in place of unreadable ones; SourceError if none can be read."""
    num_sampled = min(NUM_SAMPLED_SHARDS, len(found))
    spread = sorted({index * (len(found) - 1) // max(num_sampled - 1, 1) for index in range(num_sampled)})
    others = [index for index in range(min(MOST_TRIED, len(found))) if index not in spread]
    waiting = shards.make(found[[*spread, *others][:MOST_TRIED]])

    def try_one(shard: Shard) -> tuple[str, T] | SourceError:
        encoding = encoding_of(shard, source.format)
        assert encoding is not None, shard
        try:
            with open_shard(shard, source) as file:
                return shard.uri, read(file, Reading(shard, encoding.compression, source, pa.schema([])))
        except SourceError as error:
            return error

    results: list[tuple[str, T]] = []
    failures: list[SourceError] = []
    while waiting and len(results) < num_sampled:
        now, waiting = waiting[: num_sampled - len(results)], waiting[num_sampled - len(results) :]
        for result in map_threads(try_one, now):
            (failures if isinstance(result, SourceError) else results).append(result)
    if not results:
        raise failures[0]
    return results


def _check_columns(source: SourceConfig, sampled: list[ShardColumns], known: Collection[str]) -> Iterator[str]:
    """Yield the columns that no sampled shard of a format has. A shard that differs from the others is left for the run to report."""
    if not sampled:
        return
    uri, names = sampled[0].uri, sampled[0].names
    shown = ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
    wanted: list[tuple[str, str, Callable[[pa.DataType], bool], str]] = []
    wanted += [(f"source.text_columns={list(source.text_columns)!r}", key, is_text, "text") for key in source.text_columns]
    if source.id_column:
        wanted.append((f"source.id_column={source.id_column!r}", source.id_column, is_id, "text or a number"))
    for name, key in source.metadata_columns.items():
        setting = f"source.filter={source.filter!r}" if name.startswith(FILTER_PREFIX) else _name_setting(name, key)
        wanted.append((setting, key, lambda _: True, ""))
    for setting, key, allows, expected in wanted:
        types = {each.uri: type_ for each in sampled if (type_ := each.find_type(key)) is not None}
        if not types and key in known:
            continue
        if not types:
            count = names.count(key)
            yield f"{setting}: {uri} has {f'{count} columns' if count else 'no column'} {key!r} (found: {shown})"
        elif not any(map(allows, types.values())):
            first, type_ = next(iter(types.items()))
            yield f"{setting}: {first}: {key!r} is {name_type(type_)}, not {expected}"


def _name_setting(name: str, key: str) -> str:
    """Return the setting that asks for a column of the metadata."""
    if name.startswith(CONTEXT_PREFIX):
        return f"chunking.template: {{{name.removeprefix(CONTEXT_PREFIX).removesuffix(OPTIONAL_SUFFIX)}}}"
    return f"source.metadata_columns={[key]!r}"


def _choose_type(
    name: str, key: str, source: SourceConfig, known: pa.Schema | None, sampled: list[ShardColumns], listed: pa.DataType | None
) -> pa.DataType:
    if name in source.metadata_types:
        given, origin = source.metadata_types[name], "source.metadata_types"
        with _located(f"{origin}={{{name!r}: {given!r}}}"):
            chosen = parse_type(given)
    elif known is not None and name in known.names:
        chosen, origin = to_delta_type(known.field(name).type), "the table"
    else:
        found = {each.uri: type_ for each in sampled if each.types != "untyped" and (type_ := each.find_type(key)) is not None}
        return _unify(key, found or ({source.uri: listed} if listed is not None else {}))
    declared = [(each.uri, type_) for each in sampled if each.types == "declared" and (type_ := each.find_type(key)) is not None]
    if declared and not any(can_cast(type_, chosen) for _, type_ in declared):
        problem = f"{declared[0][0]}: {key!r} is {name_type(declared[0][1])}, which cannot become {chosen} ({origin})"
        remedy = "name another column" if name.startswith(CONTEXT_PREFIX) else "set source.metadata_types"
        raise ConfigError(f"{_name_setting(name, key)}: {problem}; {remedy}")
    return chosen


def _unify(key: str, found: dict[str, pa.DataType]) -> pa.DataType:
    uris: dict[pa.DataType, str] = {}
    with _located(f"source.metadata_columns={[key]!r}"):
        for uri, type_ in found.items():
            if type_ != pa.null():
                uris.setdefault(to_delta_type(type_), uri)
        try:
            return unify_types(list(found.values()))
        except ConfigError as error:
            each = ", ".join(f"{type_} in {uri}" for type_, uri in uris.items())
            raise ConfigError(f"{key!r} is {each}; set source.metadata_types to one of them") from error


@contextmanager
def _located(setting: str) -> Iterator[None]:
    """Prefix a ConfigError with the setting it concerns."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from error
