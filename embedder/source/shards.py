"""A folder, glob or file → its shards, and the check that no output lies among them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from embedder.config.embed import EmbedConfig
from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, EmptySourceError
from embedder.core.storage import WILDCARDS, Store
from embedder.core.units import Shard
from embedder.source.formats.registry import KNOWN_SUFFIXES, find_encoding


@dataclass(frozen=True, slots=True)
class Listing:
    """The shards to read, in order of uri, and the uris of files without a known suffix."""

    shards: tuple[Shard, ...]
    ignored: tuple[str, ...] = ()


def list_shards(source: SourceConfig) -> Listing:
    """List the shards at the source's uri. Skip names below it that start with a dot or an underscore, as Spark does.

    Raise EmptySourceError if there are no shards.
    """
    store = source.location.open()
    listed, root = store.list_files(), store.uri
    while store.is_glob and any(character in root for character in WILDCARDS):
        root = root.rpartition("/")[0]
    is_file = len(listed) == 1 and listed[0].uri == store.uri
    found = listed if is_file else [each for each in listed if not _is_hidden(each.uri, root)]
    if not found:
        hidden = f" ({len(listed)} whose names start with . or _ are skipped)" if listed else ""
        raise EmptySourceError(f"source.uri={source.uri!r}: no file is there{hidden}; give a folder, glob or file that has some")
    known: list[Shard] = []
    ignored: list[str] = []
    for each in found:
        if find_encoding(each.uri, source.format):
            known.append(Shard(each.uri, each.version, each.size_bytes))
        else:
            ignored.append(each.uri)
    if ignored and (is_file or store.is_glob):
        where = "" if ignored[0].endswith(source.uri) else f" of {ignored[0]}"
        raise ConfigError(f"source.uri={source.uri!r}: unknown format {_suffix(ignored[0])!r}{where}; {KNOWN_SUFFIXES}")
    if strange := [shard.uri for shard in known if not _is_utf8(shard.uri)]:
        raise ConfigError(f"source.uri={source.uri!r}: names that are not UTF-8, rename them: {', '.join(map(repr, strange[:8]))}")
    if not known:
        counts = Counter(map(_suffix, ignored)).most_common(8)
        suffixes = ", ".join(f"{count} × {suffix}" for suffix, count in counts)
        raise EmptySourceError(f"source.uri={source.uri!r}: no file has a known suffix (found: {suffixes}); {KNOWN_SUFFIXES}")
    return Listing(tuple(known), tuple(ignored))


def _is_hidden(uri: str, root: str) -> bool:
    """Check only the components below the root, which may itself lie in a hidden folder."""
    return any(part.startswith((".", "_")) for part in uri.removeprefix(root).split("/"))


def _is_utf8(uri: str) -> bool:
    """Check for lone surrogates, by which Python represents bytes of a local name that are not UTF-8. They cannot be stored."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix or PurePosixPath(uri).name


def refuse_own_source(config: EmbedConfig) -> None:
    """Raise ConfigError if the source's uri matches the parts of the table or of a cut, however the two are spelled."""
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
    return _matches(file, source) if is_glob else list(file[: len(source)]) == list(source)


def _matches(file: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not file:
        return not pattern and not file
    if pattern[0] == "**":
        return len(pattern) == 1 or any(_matches(file[first:], pattern[1:]) for first in range(len(file)))
    return fnmatchcase(file[0], pattern[0]) and _matches(file[1:], pattern[1:])
