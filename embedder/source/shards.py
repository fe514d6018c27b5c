"""A folder, glob or file → its shards, and the check that no output lies among them."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.embed import EmbedConfig
from embedder.config.source import TABLES, Format, SourceConfig
from embedder.core.errors import ConfigError, EmptySourceError, StorageError
from embedder.core.columns import Mask, Shards
from embedder.core.listing import NOTHING, Entries, Files, Found, Kind, is_pattern, is_utf8, matches
from embedder.core.storage import Location, Store
from embedder.core.units import Shard
from embedder.source.delta_source import list_delta_files
from embedder.source.formats.arrow_columns import find_field
from embedder.source.formats.registry import KNOWN_SUFFIXES, find_encoding, find_formats
from embedder.source.partitions import Constants, find_keys, infer_types, parse_folders
from embedder.source.table_files import TableFiles
from embedder.source.table_formats import FORMATS_BY_KIND, MARK, FoundTable, find_delta_table, find_table_above, find_tables

HIDDEN, JOB_MARKER, UNKNOWN_SUFFIX, MATCHED_FOLDER = "hidden", "job marker", "unknown suffix", "folder matched by the pattern"
_JOB_MARKER = re.compile(r"_SUCCESS|_committed_[0-9]+|_started_[0-9]+|_metadata|_common_metadata|\.[^/]*\.crc")
"""Files that Spark and others write beside the data."""
_HIDDEN = re.compile(r"\.[^/]*|_[^/=]*|[^/]*\._COPYING_")
"""Spark's rule: a partition such as _date=2024 is not hidden, and a file that is still copied is."""
SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Ignored:
    """Files passed over for one reason, and the uris of the first few."""

    count: int = 0
    uris: tuple[str, ...] = ()


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
    shards, ignored = _sort(found, "" if is_file else root, source)
    if UNKNOWN_SUFFIX in ignored and (is_file or store.is_glob):
        uri = ignored[UNKNOWN_SUFFIX].uris[0]
        where = "" if uri.endswith(source.uri) else f" of {uri!r}"
        raise ConfigError(f"source.uri={source.uri!r}: unknown format {_suffix(uri)!r}{where}; {KNOWN_SUFFIXES}")
    if not len(shards):
        raise _nothing_found(source, store, found, ignored)
    return Listing(shards, ignored, infer_types(kind.constants for kind in shards.kinds), table=commit)


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


def _sort(entries: Entries, root: str | None, source: SourceConfig) -> tuple[Shards, dict[str, Ignored]]:
    """Sort entries into shards and ignored files; ConfigError for a shard whose name cannot be stored or opened."""
    found: defaultdict[str, list[tuple[int, Sequence[str]]]] = defaultdict(list)
    wanted: list[Found] = []
    for each in entries.others:
        if reason := _reason(each, root, source):
            found[reason].append((1, [each.uri]))
        else:
            wanted.append(each)
    if strange := [each.uri for each in wanted if each.kind != Kind.BROKEN_LINK or not is_utf8(each.uri)]:
        names = ", ".join(map(repr, strange[:8]))
        raise ConfigError(f"source.uri={source.uri!r}: names that are not UTF-8, or hold ?versionId=; rename them: {names}")
    files = Files.concat([entries.files, Files.of(wanted)]) if wanted else entries.files
    left = np.ones(len(files), np.bool_)
    for reason, mask in _reasons(files.uris, root, source):
        rows = np.flatnonzero(mask & left)
        left[rows] = False
        if len(rows):
            found[reason].append((len(rows), files.uris.take(pa.array(rows[:SHOWN_NAMES])).to_pylist()))
    ignored = {reason: _count(each) for reason, each in found.items()}
    files = files if left.all() else files.select(pa.array(left))
    return _to_shards(files, find_keys(source)), dict(sorted(ignored.items(), key=lambda each: each[1].uris))


def _count(found: Sequence[tuple[int, Sequence[str]]]) -> Ignored:
    uris = sorted(uri for _, uris in found for uri in uris)
    return Ignored(sum(count for count, _ in found), tuple(uris[:SHOWN_NAMES]))


def _to_shards(files: Files, keys: Collection[str]) -> Shards:
    """Return files as shards, with the columns that the names of their folders give."""
    if not keys or not pc.any(pc.match_substring(files.uris, "=")).as_py():
        return Shards(files.uris, files.versions, files.sizes, np.zeros(len(files), np.int32), (Shard("", "", 0),))
    folders = pc.replace_substring_regex(files.uris, "[^/]*$", "").dictionary_encode()
    kinds: dict[Constants, int] = {}
    kind = np.array([kinds.setdefault(parse_folders(folder, keys), len(kinds)) for folder in folders.dictionary.to_pylist()], np.int32)
    return Shards(files.uris, files.versions, files.sizes, kind[folders.indices.to_numpy()], tuple(Shard("", "", 0, each) for each in kinds))


def _reasons(uris: pa.LargeStringArray, root: str | None, source: SourceConfig) -> Iterator[tuple[str, Mask]]:
    """Yield reasons not to read a file, and the files to which each applies unless an earlier one does; as `_reason` for one entry."""
    if root:
        below = pc.if_else(pc.starts_with(uris, root), pc.utf8_slice_codeunits(uris, len(root)), uris)
        is_hidden = _match(below, f"(?:^|/)(?:{_HIDDEN.pattern})(?:/|$)")
        yield JOB_MARKER, is_hidden & _match(uris, f"/(?:{_JOB_MARKER.pattern})$")
        yield HIDDEN, is_hidden
    formats, places = find_formats(uris, source.format)
    yield UNKNOWN_SUFFIX, np.array([each is None for each in formats], np.bool_)[places]


def _match(texts: pa.LargeStringArray, pattern: str) -> Mask:
    return np.asarray(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False), np.bool_)


def _reason(found: Found, root: str | None, source: SourceConfig) -> str | None:
    """Return why an entry that is not a plain file is not read; None: it is a shard. A broken link of a known suffix cannot be read."""
    if found.kind in (Kind.FOLDER_MARKER, Kind.LINK_CYCLE, Kind.SPECIAL_FILE):
        return found.kind
    if found.kind == Kind.FOLDER:
        return MATCHED_FOLDER
    name = found.uri.rpartition("/")[2]
    if root and any(map(_is_hidden, found.uri.removeprefix(root).split("/"))):
        return JOB_MARKER if _JOB_MARKER.fullmatch(name) else HIDDEN
    if find_encoding(found.uri, source.format):
        return None
    return Kind.BROKEN_LINK if found.kind == Kind.BROKEN_LINK else UNKNOWN_SUFFIX


def _is_hidden(name: str) -> bool:
    return _HIDDEN.fullmatch(name) is not None


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
    table = next((each for each in find_tables(seen[uri] for uri in sorted(seen)) if not any(map(_is_hidden, each.folder.removeprefix(root).split("/")))), None)
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


def count_ignored(ignored: Mapping[str, Ignored]) -> dict[str, int]:
    """Return the number of ignored files by reason."""
    return {reason: each.count for reason, each in ignored.items()}


def describe_ignored(counts: Mapping[str, int]) -> str:
    """Return the numbers of ignored files by reason as words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


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
