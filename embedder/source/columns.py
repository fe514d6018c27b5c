"""A few shards → the metadata's schema, before the first document is read; or one ConfigError with all that cannot work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, SourceError, StorageError
from embedder.core.storage import Store, map_threads
from embedder.core.units import Shard
from embedder.source.decompression import damage_explained
from embedder.source.formats.csv_rows import read_header
from embedder.source.formats.jsonl import get_key, sample_jsonl
from embedder.source.formats.parquet import find_field, read_footer
from embedder.source.metadata_types import can_be_fields, is_id, is_text, parse_type, to_delta_type, unify_types
from embedder.source.shards import Encoding, ShardFormat, shard_format

T = TypeVar("T")

NUM_SAMPLED_SHARDS = 4
SAMPLE = (1000, 4 << 20)
"""Records and bytes looked at in each sampled JSONL shard, whichever is reached first."""
MOST_FIELDS = 64
"""Objects with more different keys than this are taken for dictionaries, and kept as JSON text."""
MOST_NESTED = 8
_SHOWN = 30
MOST_TRIED = 16
"""Shards of a format that are tried before the source is taken to be unreadable."""
_MISSING = object()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen of one shard, or of several together."""

    uri: str
    names: list[str]
    find_type: Callable[[str], pa.DataType | None]
    """None: no such key or column."""
    is_typed: bool = True
    """False where everything is text, so that the type says nothing."""


def inspect_source(source: SourceConfig, shards: Sequence[Shard], known: pa.Schema | None = None) -> pa.Schema:
    """Look at shards of each format. A type comes from `source.metadata_types`, else from `known` (an existing table), else from
    the shards. A ConfigError holds all problems, a line each. A shard that cannot be opened is passed over, for the run to report;
    SourceError if none at all can be."""
    by_format, problems = _look(source, shards)
    problems += [problem for seen in by_format for problem in _check_columns(source, seen)]
    fields = []
    for name, key in source.metadata_columns.items():
        try:
            fields.append(pa.field(name, _choose_type(name, key, source, known, [each for seen in by_format for each in seen])))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return pa.schema(fields)


def _look(source: SourceConfig, shards: Sequence[Shard]) -> tuple[list[list[_Seen]], list[str]]:
    by_format: dict[ShardFormat, list[tuple[Shard, Encoding]]] = {}
    for shard in shards:
        if encoding := shard_format(shard.uri, source.format):
            by_format.setdefault(encoding.format, []).append((shard, encoding))
    problems = []
    if "text" in by_format and (source.id_column or source.metadata_columns):
        problems.append(_needs_columns(source, by_format["text"][0][0].uri))
    seen: list[list[_Seen]] = []
    failure: SourceError | None = None
    for format_, found in by_format.items():
        if format_ != "text":
            try:
                seen.append(_LOOKS[format_](found, source))
            except ConfigError as error:
                problems.append(str(error))
            except SourceError as error:
                failure = failure or error
    if failure and not any(seen) and not problems:
        raise failure
    return seen, problems


def _needs_columns(source: SourceConfig, uri: str) -> str:
    setting = f"id_column={source.id_column!r}" if source.id_column else f"metadata_columns={list(source.metadata_columns.values())}"
    return f"source.{setting}: {uri} is a text file, which has no columns; leave it out, or narrow source.uri"


@contextmanager
def _open(shard: Shard, source: SourceConfig) -> Iterator[IO[bytes]]:
    try:
        with Store(shard.uri, source.storage_options).open_input() as file, damage_explained(shard.uri):
            yield file
    except StorageError as error:
        raise SourceError(str(error)) from error


def _read_some(
    found: list[tuple[Shard, Encoding]], source: SourceConfig, read: Callable[[IO[bytes], Encoding], T]
) -> list[tuple[Shard, T]]:
    """Read a few shards, spread over the list, and others for those that cannot be; SourceError if none can."""
    num_sampled = min(NUM_SAMPLED_SHARDS, len(found))
    spread = sorted({index * (len(found) - 1) // max(num_sampled - 1, 1) for index in range(num_sampled)})
    others = [each for index, each in enumerate(found[:MOST_TRIED]) if index not in spread]
    ordered = [*(found[index] for index in spread), *others][:MOST_TRIED]

    def try_one(tried: tuple[Shard, Encoding]) -> tuple[Shard, T] | SourceError:
        try:
            with _open(tried[0], source) as file:
                return tried[0], read(file, tried[1])
        except SourceError as error:
            return error

    results: list[tuple[Shard, T]] = []
    failures: list[SourceError] = []
    while ordered and len(results) < num_sampled:
        now, ordered = ordered[: num_sampled - len(results)], ordered[num_sampled - len(results) :]
        for result in map_threads(try_one, now):
            (failures if isinstance(result, SourceError) else results).append(result)
    if not results:
        raise failures[0]
    return results


def _look_at_parquet(found: list[tuple[Shard, Encoding]], source: SourceConfig) -> list[_Seen]:
    schemas = _read_some(found, source, lambda file, _: read_footer(file)[0])
    return [_Seen(shard.uri, schema.names, partial(_column_type, schema)) for shard, schema in schemas]


def _column_type(schema: pa.Schema, key: str) -> pa.DataType | None:
    found = find_field(schema, key)
    return found[1] if found else None


def _look_at_csv(found: list[tuple[Shard, Encoding]], source: SourceConfig) -> list[_Seen]:
    """Take the headers of the sampled shards; ones that are empty say nothing."""
    headers = _read_some(found, source, lambda file, encoding: read_header(file, encoding.compression))
    named = [(shard.uri, names) for shard, names in headers if names is not None]
    return [_Seen(uri, names, dict.fromkeys(names, pa.string()).get, is_typed=False) for uri, names in named]


def _look_at_jsonl(found: list[tuple[Shard, Encoding]], source: SourceConfig) -> list[_Seen]:
    """Take what the sampled shards hold together; ones that are empty say nothing."""
    samples = _read_some(found, source, lambda file, encoding: sample_jsonl(file, encoding.compression, SAMPLE))
    records = [record for _, (objects, _) in samples for record in objects]
    num_lines = sum(num_sampled_lines for _, (_, num_sampled_lines) in samples)
    uri = samples[0][0].uri
    if not records and num_lines:
        raise ConfigError(f"source.uri={source.uri!r}: {uri} has no JSON object among its first lines; JSON is read as one object a line")
    keys = list(dict.fromkeys(key for record in records for key in record))
    return [_Seen(uri, keys, lambda key: _sampled_type(records, key))] if records else []


_LOOKS: dict[ShardFormat, Callable[[list[tuple[Shard, Encoding]], SourceConfig], list[_Seen]]] = {
    "parquet": _look_at_parquet,
    "jsonl": _look_at_jsonl,
    "csv": _look_at_csv,
}


def _sampled_type(records: list[dict[str, Any]], key: str) -> pa.DataType | None:
    get = get_key(key, _MISSING)
    values = [value for value in map(get, records) if value is not _MISSING]
    return infer_type(values) if values else None


def infer_type(values: Sequence[Any], depth: int = 0) -> pa.DataType:
    """Give the type that holds all of these JSON values; where none does it is string, and they are kept as JSON text."""
    kinds = {type(value) for value in values} - {type(None)}
    present = [value for value in values if value is not None]
    if kinds == {list} and depth < MOST_NESTED:
        return pa.list_(infer_type([each for value in present for each in value], depth + 1))
    if kinds == {dict} and depth < MOST_NESTED:
        names = list(dict.fromkeys(name for value in present for name in value))
        if 0 < len(names) <= MOST_FIELDS and can_be_fields(names):
            return pa.struct([(name, infer_type([value.get(name) for value in present], depth + 1)) for name in names])
    if kinds == {int}:
        return pa.int64() if all(-(2**63) <= value < 2**63 for value in present) else pa.string()
    if kinds in ({float}, {int, float}):
        return pa.float64()
    return pa.null() if not kinds else pa.bool_() if kinds == {bool} else pa.string()


def _check_columns(source: SourceConfig, seen: list[_Seen]) -> Iterator[str]:
    """Tell what none of a format's shards has: one that differs from the others is left to the run to report."""
    if not seen:
        return
    names = ", ".join([*seen[0].names[:_SHOWN], *(["…"] if len(seen[0].names) > _SHOWN else [])])
    wanted: list[tuple[str, Any, str, Callable[[pa.DataType], bool], str]] = []
    wanted += [("text_columns", list(source.text_columns), key, is_text, "text") for key in source.text_columns]
    if source.id_column:
        wanted.append(("id_column", source.id_column, source.id_column, is_id, "text or a number"))
    wanted += [("metadata_columns", [key], key, lambda _: True, "") for key in source.metadata_columns.values()]
    for setting, given, key, allows, expected in wanted:
        found = [(each.uri, type_) for each in seen if (type_ := each.find_type(key)) is not None]
        if not found:
            yield f"source.{setting}={given!r}: {seen[0].uri} has no column {key!r} (found: {names})"
        elif not any(allows(type_) for _, type_ in found):
            yield f"source.{setting}={given!r}: {found[0][0]}: {key!r} is {found[0][1]}, not {expected}"


def _choose_type(name: str, key: str, source: SourceConfig, known: pa.Schema | None, seen: list[_Seen]) -> pa.DataType:
    found = {each.uri: type_ for each in seen if each.is_typed and (type_ := each.find_type(key)) is not None}
    if name in source.metadata_types:
        chosen, whose = _declared(name, source), "source.metadata_types"
    elif known is not None and name in known.names:
        chosen, whose = to_delta_type(known.field(name).type), "the table"
    else:
        return _unify(key, found)
    columns = [(uri, type_) for uri, type_ in found.items() if uri.endswith(".parquet")]
    if columns and not any(_can_cast(type_, chosen) for _, type_ in columns):
        problem = f"{columns[0][0]}: {key!r} is {columns[0][1]}, which cannot become {chosen} ({whose})"
        raise ConfigError(f"source.metadata_columns={[key]!r}: {problem}; set source.metadata_types")
    return chosen


def _declared(name: str, source: SourceConfig) -> pa.DataType:
    given = source.metadata_types[name]
    try:
        return parse_type(given)
    except ConfigError as error:
        raise ConfigError(f"source.metadata_types={{{name!r}: {given!r}}}: {error}") from error


def _unify(key: str, found: dict[str, pa.DataType]) -> pa.DataType:
    uris: dict[pa.DataType, str] = {}
    try:
        for uri, type_ in found.items():
            if type_ != pa.null():
                uris.setdefault(to_delta_type(type_), uri)
    except ConfigError as error:
        raise ConfigError(f"source.metadata_columns={[key]!r}: {error}") from error
    try:
        return unify_types(list(found.values()))
    except ConfigError as error:
        each = ", ".join(f"{type_} in {uri}" for type_, uri in uris.items())
        raise ConfigError(f"source.metadata_columns={[key]!r}: {key!r} is {each}; set source.metadata_types to one of them") from error


def _can_cast(type_: pa.DataType, target: pa.DataType) -> bool:
    try:
        pc.cast(pa.array([], type_), target)
    except pa.ArrowException:
        return False
    return True
