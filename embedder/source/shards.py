"""A folder, glob or file → its shards, and the check that no output lies among them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.embed import EmbedConfig
from embedder.config.source import TABLES, Format, SourceConfig
from embedder.core.columns import Shards
from embedder.core.errors import ConfigError, EmptySourceError, StorageError
from embedder.core.listing import NOTHING, Entries, Kind, is_pattern, matches
from embedder.core.storage import Location, Store, map_threads
from embedder.source.delta_source import list_delta_files
from embedder.source.file_kinds import MATCHED_FOLDER, UNKNOWN_SUFFIX, Ignored, count_ignored, describe_ignored, is_hidden, sort_files
from embedder.source.formats.arrow_columns import find_field
from embedder.source.formats.database_files import find_log
from embedder.source.formats.registry import KNOWN_SUFFIXES, group_by_format
from embedder.source.partitions import find_keys, infer_types
from embedder.source.table_files import TableFiles
from embedder.source.table_formats import FORMATS_BY_KIND, MARK, FoundTable, find_delta_table, find_table_above, find_tables


@dataclass(frozen=True, slots=True)
class Listing:
    """The shards to read, in order of uri, and all other files by the reason why they are not read."""

    shards: Shards
    ignored: Mapping[str, Ignored] = field(default_factory=dict)
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Types of the wanted columns that folders or the log of a table give."""
    table: str = ""
    """The table that was listed and its version, or the repository and its commit, in words; empty: the source is neither."""


def list_shards(source: SourceConfig, own: Collection[str] = ()) -> Listing:
    """List the shards at the source's uri. Names below it that start with a dot or an underscore are hidden, as Spark has it.

    A shard of no bytes is a shard: without records in jsonl, csv and text, damaged in parquet or compressed. In a Delta table the log
    is listed and not the folder; a table in one of the folders `own`, which the run writes, is refused. Raise EmptySourceError if there
    are no shards, ConfigError if the files belong to a table of another format, StorageError if a folder or log cannot be listed.
    """
    if source.is_postgres:
        from embedder.source.postgres_source import list_postgres_ranges  # its package is an extra

        return _to_listing(source, *list_postgres_ranges(source))
    store = source.location.open()
    _refuse_syntax(source, store)
    if source.format == "iceberg" or store.path.endswith((".metadata.json", ".metadata.json.gz")):
        # a metadata file, a folder or a table of a catalog, none of which is listed
        return _to_listing(source, _list_files(source, "iceberg", None if _names_catalog(source, store) else store.uri), source.uri)
    table = None if store.is_glob else find_delta_table(store.place, source.storage_options)
    commit = store.find_commit()
    entries = NOTHING if table else store.list_entries()
    if store.find_commit() != commit:
        raise StorageError(f"{store.uri}: a commit was pushed while it was listed; run again")
    found = replace(entries, others=tuple(each for each in entries.others if each.kind != Kind.BESIDE))
    is_file = len(found) == 1 and found.uris == [store.uri]
    root = _root_of(store)
    table = table or _find_table(source, store, root, entries)
    if table and Location(table.folder, source.storage_options).open().place in own:
        problem = f"lies in the table that this run writes, {table.folder!r}, which would become its own source"
        raise ConfigError(f"source.uri={source.uri!r}: {problem}; choose another folder")
    if table:
        return _list_table(source, store, root, table)
    if source.format in TABLES or source.version is not None:
        setting = f"source.format={source.format!r}" if source.format in TABLES else f"source.version={source.version!r}"
        raise ConfigError(f"{setting}: no table is at or above {source.uri!r}; name the folder that holds its log")
    shards, ignored = sort_files(found, "" if is_file else root, source)
    if UNKNOWN_SUFFIX in ignored and (is_file or store.is_glob):
        uri = ignored[UNKNOWN_SUFFIX].uris[0]
        where = "" if uri.endswith(source.uri) else f" of {uri!r}"
        raise ConfigError(f"source.uri={source.uri!r}: unknown format {_suffix(uri)!r}{where}; {KNOWN_SUFFIXES}")
    if not len(shards):
        raise _nothing_found(source, store, found, ignored)
    shards = _add_logs(shards, source)
    return Listing(shards, ignored, infer_types(kind.constants for kind in shards.kinds), table=commit)


def _add_logs(shards: Shards, source: SourceConfig) -> Shards:
    """Return shards with versions that also name a log beside a database, so that it is read, and refused, if the log alone changed."""
    added: dict[int, str] = {}
    for format_, rows in group_by_format(shards, source.format).items():
        if format_.logs:
            logs = map_threads(partial(find_log, source=source, ends=format_.logs), shards.uris.take(pa.array(rows)).to_pylist())
            added |= {int(row): log for row, log in zip(rows, logs, strict=True) if log}
    if not added:
        return shards
    versions = [f"{version}, {added[row]}" if row in added else version for row, version in enumerate(shards.versions.to_pylist())]
    return replace(shards, versions=pa.array(versions, shards.versions.type))


def _list_table(source: SourceConfig, store: Store, root: str, table: FoundTable) -> Listing:
    """List the files of a table, of Delta also those that the source names; ConfigError for a table that is not read."""

    def find_place(uri: str) -> str:
        return Location(uri, source.storage_options).open().place

    place, table_place = find_place(root), find_place(table.folder)
    is_within = f"{place}/".startswith(f"{table_place}/")
    format_ = FORMATS_BY_KIND.get(table.kind)
    is_whole = place == table_place and not store.is_glob
    if format_ is None or source.format not in ("auto", format_) or not (is_whole or (is_within and table.kind == "Delta")):
        raise _refused_table(source, table, "is" if is_whole else "lies in" if is_within else "holds")
    # the name that the settings use, which may lead through links
    above = [root.rsplit("/", levels)[0] if levels else root for levels in range(root.count("/"))]
    folder = next((each for each in above if find_place(each) == table_place), table.folder)
    found = _list_files(source, format_, folder)
    if root == folder and not store.is_glob:
        return _to_listing(source, found, folder)
    pattern = store.path.split("/") if store.is_local else store.uri.split("/")
    named = [_is_matched(uri.split("/"), pattern, store.is_glob) for uri in found.shards.uris.to_pylist()]
    shards = found.shards.select(np.flatnonzero(named))
    return _to_listing(source, replace(found, shards=shards), folder, len(found.shards) - len(shards))


def _list_files(source: SourceConfig, format_: Format, root: str | None) -> TableFiles:
    if format_ == "delta":
        assert root is not None
        return list_delta_files(source, root)
    # their packages are extras
    if format_ == "lance":
        from embedder.source.lance_source import list_lance_fragments

        assert root is not None
        return list_lance_fragments(source, root)
    from embedder.source.iceberg_source import list_iceberg_files

    return list_iceberg_files(source, root)


def _names_catalog(source: SourceConfig, store: Store) -> bool:
    return "/" not in source.uri and source.uri.count(".") >= 2 and store.info() is None


def _to_listing(source: SourceConfig, found: TableFiles, folder: str, num_others: int = 0) -> Listing:
    if not found.shards:
        narrowed = f", and {num_others} elsewhere" if num_others else ""
        raise EmptySourceError(f"source.uri={source.uri!r}: {found.words} names no file there{narrowed}")
    types = {key: _find_type(found.schema, key) for key in find_keys(source)}
    return Listing(found.shards, types={key: type_ for key, type_ in types.items() if type_ is not None}, table=f"{folder}, {found.words}")


def _find_type(schema: pa.Schema, key: str) -> pa.DataType | None:
    found = find_field(schema, key)
    return found[1] if found else None


def _root_of(store: Store) -> str:
    """Return the folder below which names count: the part of a pattern before its first wildcard. It may lie in a hidden folder."""
    root = store.uri
    while store.is_glob and is_pattern(root):
        root = root.rpartition("/")[0]
    return root


def _refuse_syntax(source: SourceConfig, store: Store) -> None:
    if "?versionId=" in source.uri:
        raise ConfigError(f"source.uri={source.uri!r}: one version of an object cannot be named; name the object")
    if store.is_glob and any("**" in part and part != "**" for part in store.path.split("/")):
        raise ConfigError(f"source.uri={source.uri!r}: ** matches whole folders; write it between slashes, as in a/**/*.jsonl")


def _find_table(source: SourceConfig, store: Store, root: str, entries: Entries) -> FoundTable | None:
    """Find the table that the source holds, by its listing, or in which a pattern's matches lie, by the folders above them."""
    files = entries.files.uris
    seen = {uri: uri for uri in files.filter(pc.match_substring_regex(files, MARK.pattern)).to_pylist()}
    seen |= {each.uri: f"{each.uri}/" if each.kind in (Kind.FOLDER, Kind.BESIDE) else each.uri for each in entries.others}
    table = next(
        (
            each
            for each in find_tables(seen[uri] for uri in sorted(seen))
            if not any(map(is_hidden, each.folder.removeprefix(root).split("/")))
        ),
        None,
    )
    if table is None and len(entries):
        folders = pc.unique(pc.replace_substring_regex(files, "[^/]*$", "")).to_pylist() if store.is_glob else [store.place]
        table = find_table_above(sorted(folders), source.storage_options)
    return table


def _refused_table(source: SourceConfig, table: FoundTable, place: str) -> ConfigError:
    folder = "" if place == "is" else f", {table.folder!r}"
    advice = "export its current rows with the tool that wrote it, as parquet files in a folder of their own, and name that folder"
    if table.kind in FORMATS_BY_KIND:
        named = f"leave out source.format={source.format!r}" if source.format not in ("auto", FORMATS_BY_KIND[table.kind]) else ""
        named = named if place != "holds" and named else "name the table's folder"
        advice = f"{named} to read the rows of its newest version"
    problem = f"{place} a table ({table.kind}{folder}), whose files also hold rows that were deleted or replaced"
    return ConfigError(f"source.uri={source.uri!r}: {problem}; {advice}")


def _nothing_found(source: SourceConfig, store: Store, found: Entries, ignored: Mapping[str, Ignored]) -> EmptySourceError:
    """Return the error for a source without shards, with what was found instead."""
    where = f"source.uri={source.uri!r}"
    if set(ignored) == {UNKNOWN_SUFFIX}:
        common = Counter(map(_suffix, found.uris)).most_common(8)
        suffixes = ", ".join(f"{count} × {suffix!r}" for suffix, count in common)
        return EmptySourceError(f"{where}: no file has a known suffix (found: {suffixes}); {KNOWN_SUFFIXES}")
    hint = "* ? [ ] are wildcards unless a file or folder of that name exists, and [[] is a bracket"
    if ignored:
        counts = describe_ignored(count_ignored(ignored))
        advice = f"end the pattern with /** for the files below; {hint}" if MATCHED_FOLDER in ignored else "give one that has some"
        return EmptySourceError(f"{where}: no file there is read ({counts}); {advice}")
    if store.is_glob:
        return EmptySourceError(f"{where}: nothing matches the pattern; {hint}")
    return EmptySourceError(f"{where}: no file is there; give a folder, glob or file that has some")


def _suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix or PurePosixPath(uri).name


def refuse_own_source(config: EmbedConfig) -> None:
    """Raise ConfigError if the source's uri matches the parts of the table or of a cut, however the two are spelled."""
    if config.source.is_postgres:
        return
    source = config.source.location.open()
    tables = [("output.uri", config.output.location)]
    tables += [(f"output.cuts[{number}].uri", cut.location) for number, cut in enumerate(config.output.cuts)]
    problems = [
        f"{name}={table.uri!r}: lies in source.uri={config.source.uri!r}, the table would become its own source; choose another folder"
        for name, table in tables
        if _is_matched(_split(table.child("part.parquet").open()), _split(source), source.is_glob)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _split(store: Store) -> list[str]:
    return store.place.split("/")


def _is_matched(file: Sequence[str], source: Sequence[str], is_glob: bool) -> bool:
    """Check whether a file lies in the source's folder at any depth, or matches its glob, in which `**` is any folders."""
    return matches(file, source) if is_glob else list(file[: len(source)]) == list(source)
