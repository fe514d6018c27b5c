"""Files are sorted as columns by the rules for one name."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError
from embedder.core.listing import Entries, Files, Found, Kind
from embedder.source.file_kinds import HIDDEN, JOB_MARKER, UNKNOWN_SUFFIX, sort_files
from embedder.source.formats.registry import find_encoding, find_formats

SOURCE = SourceConfig(uri="/docs")
pieces = st.sampled_from(
    ["a", ".", "..", ".jsonl", ".JSONL", ".gz", ".parquet", ".tar", "/", "\n", "é", "_", "1.2", "._COPYING_", "year=1"]
)
names = st.lists(pieces, min_size=1, max_size=5).map(lambda each: "/docs/" + "".join(each))


@settings(deadline=None)
@given(st.lists(names, max_size=8), st.sampled_from(["auto", "jsonl", "delta"]))
def test_formats_of_many_names_are_those_of_each(uris: list[str], wanted: Any) -> None:
    formats, places = find_formats(pa.array(uris, pa.large_string()), wanted)
    found = [find_encoding(uri, wanted) for uri in uris]
    assert [formats[place] for place in places] == [each.format if each else None for each in found]


def is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name) or name.endswith("._COPYING_")


@settings(deadline=None)
@given(st.lists(names, max_size=8, unique=True).map(sorted))
def test_files_are_hidden_unknown_or_shards(uris: list[str]) -> None:
    files = Files.of([Found(uri, "v", 1) for uri in uris])
    shards, ignored = sort_files(Entries(files, ()), "/docs", SOURCE)
    hidden = [uri for uri in uris if any(map(is_hidden, uri.removeprefix("/docs").split("/")))]
    unknown = [uri for uri in uris if uri not in hidden and find_encoding(uri) is None]
    assert [shard.uri for shard in shards] == [uri for uri in uris if uri not in hidden and uri not in unknown]
    for reason, found in ((HIDDEN, hidden), (UNKNOWN_SUFFIX, unknown)):
        assert (ignored[reason].count, ignored[reason].uris) == (len(found), tuple(found[:3])) if found else reason not in ignored


def test_other_entries_are_shards_or_ignored_with_the_files() -> None:
    files = Files.of([Found("/docs/_SUCCESS", "v", 1), Found("/docs/b.jsonl", "v", 1)])
    others = (Found("/docs/.x.crc", "", 0, None, Kind.BROKEN_LINK), Found("/docs/a.jsonl", "0-None", 0, None, Kind.BROKEN_LINK))
    shards, ignored = sort_files(Entries(files, others), "/docs", SOURCE)
    assert [shard.uri for shard in shards] == ["/docs/a.jsonl", "/docs/b.jsonl"]
    assert ignored[JOB_MARKER].uris == ("/docs/.x.crc", "/docs/_SUCCESS")
    with pytest.raises(ConfigError, match="names that are not UTF-8"):
        sort_files(Entries(files, (Found("/docs/\udce9.jsonl", "v", 1),)), "/docs", SOURCE)


def test_folders_give_columns_by_name() -> None:
    source = SourceConfig(uri="/docs", metadata_columns={"year": "year"})
    files = Files.of([Found(f"/docs/year={year}/{number}.jsonl", "v", 1) for year in (1, 2) for number in range(3)])
    shards, _ = sort_files(Entries(files, ()), "/docs", source)
    assert [dict(shard.constants)["year"] for shard in shards] == ["1", "1", "1", "2", "2", "2"]
    assert (len(shards.kinds), np.unique(shards.kind).tolist()) == (2, [0, 1])
