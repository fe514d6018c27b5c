"""A folder, glob or file → its shards, each with a format and a compression read off its suffix."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

from embedder.config.embed import EmbedConfig
from embedder.config.output import CutTableConfig, OutputConfig
from embedder.config.source import Format, SourceConfig
from embedder.core.errors import ConfigError, EmptySourceError
from embedder.core.storage import WILDCARDS, Store
from embedder.core.units import Shard

ShardFormat = Literal["parquet", "jsonl", "csv", "text"]

FORMATS: dict[str, ShardFormat] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}
_KNOWN = f"known are {' '.join(FORMATS)}, each but .parquet also with {' '.join(COMPRESSIONS)}; or set source.format"


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the bytes of a shard become records."""

    format: ShardFormat
    compression: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What is to be read, in order of uri, and which files of the folder are not: their suffix says nothing."""

    shards: tuple[Shard, ...]
    ignored: tuple[str, ...] = ()


def shard_format(uri: str, wanted: Format = "auto") -> Encoding | None:
    """Tell format and compression; `wanted` decides the format unless auto. None: the suffix says nothing."""
    # not PurePosixPath.suffixes, which took half of the time of listing a million files
    name = uri.rpartition("/")[2].lstrip(".").lower()
    *_, before, last = ["", "", *(f".{suffix}" for suffix in name.split(".")[1:])]
    compression = COMPRESSIONS.get(last)
    format_ = FORMATS.get(before if compression else last) if wanted == "auto" else wanted
    if format_ is None or (format_ == "parquet" and compression and wanted == "auto"):
        return None
    return Encoding(format_, None if format_ == "parquet" else compression)


def list_shards(source: SourceConfig) -> Listing:
    """List what the uri names. Names that start with a dot or an underscore, below the folder, are passed over, as Spark does.

    EmptySourceError if there is no shard at all.
    """
    store = source.location.open()
    listed, root = store.list_files(), store.uri
    while store.is_glob and any(character in root for character in WILDCARDS):
        root = root.rpartition("/")[0]
    is_file = len(listed) == 1 and listed[0].uri == store.uri
    found = listed if is_file else [each for each in listed if not _is_hidden(each.uri, root)]
    if not found:
        passed_over = f" ({len(listed)} whose names start with . or _ are passed over)" if listed else ""
        raise EmptySourceError(f"source.uri={source.uri!r}: no file is there{passed_over}; give a folder, glob or file that has some")
    known: list[Shard] = []
    ignored: list[str] = []
    for each in found:
        if shard_format(each.uri, source.format):
            known.append(Shard(each.uri, each.version, each.size_bytes))
        else:
            ignored.append(each.uri)
    if ignored and (is_file or store.is_glob):
        where = "" if ignored[0].endswith(source.uri) else f" of {ignored[0]}"
        raise ConfigError(f"source.uri={source.uri!r}: unknown format {_suffix(ignored[0])!r}{where}; {_KNOWN}")
    if strange := [each.uri for each in known if not _is_utf8(each.uri)]:
        raise ConfigError(f"source.uri={source.uri!r}: names that are not UTF-8, rename them: {', '.join(map(repr, strange[:8]))}")
    if not known:
        raise EmptySourceError(f"source.uri={source.uri!r}: no file has a known suffix (found: {_suffixes(ignored)}); {_KNOWN}")
    return Listing(tuple(known), tuple(ignored))


def _is_hidden(uri: str, root: str) -> bool:
    """Look at the components below the root only: a folder may itself lie in a hidden one."""
    return any(part.startswith((".", "_")) for part in uri.removeprefix(root).split("/"))


def _is_utf8(uri: str) -> bool:
    """Local disk allows names of any bytes; Python gives those that are no text as lone surrogates, which nothing can store."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix or PurePosixPath(uri).name


def _suffixes(uris: list[str]) -> str:
    counts = Counter(_suffix(uri) for uri in uris)
    return ", ".join(f"{count} × {suffix}" for suffix, count in counts.most_common(8))


def refuse_own_source(config: EmbedConfig) -> None:
    """Refuse a table, or a cut, whose parts the source's uri names, however the two are spelled."""
    source = config.source.location.open()
    tables: list[tuple[str, OutputConfig | CutTableConfig]] = [("output.uri", config.output)]
    tables += [(f"output.cuts[{number}].uri", cut) for number, cut in enumerate(config.output.cuts)]
    problems = [
        f"{name}={table.uri!r}: lies in source.uri={config.source.uri!r}, the table would become its own source; choose another folder"
        for name, table in tables
        if is_named(_steps(Store(f"{table.uri.rstrip('/')}/part.parquet", table.storage_options)), _steps(source), source.is_glob)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _steps(store: Store) -> list[str]:
    return store.place.split("/")


def is_named(file: Sequence[str], source: Sequence[str], is_glob: bool) -> bool:
    """Tell whether a source names a file: as a folder that it lies in at any depth, or by wildcards, of which `**` is any folders."""
    if not is_glob:
        return list(file[: len(source)]) == list(source)
    return _matches(file, source)


def _matches(file: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not file:
        return not pattern and not file
    if pattern[0] == "**":
        return len(pattern) == 1 or any(_matches(file[first:], pattern[1:]) for first in range(len(file)))
    return fnmatchcase(file[0], pattern[0]) and _matches(file[1:], pattern[1:])
