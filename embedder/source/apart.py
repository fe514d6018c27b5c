"""A table apart from its source: parts that lie where shards are looked for would be read as documents by the next run."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from embedder.config.embed import EmbedConfig
from embedder.config.output import CutTableConfig, OutputConfig
from embedder.core.errors import ConfigError
from embedder.core.storage import Store


def refuse_own_source(config: EmbedConfig) -> None:
    """Refuse a table, or a cut, whose parts the source's uri names, however the two are spelled."""
    source = Store(config.source.uri, config.source.storage_options)
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
