"""Listing an S3 prefix: keys that look like syntax, keys that stand for folders, and requests that fail on the way."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from embedder.benchmark.source_files import COLUMNS, WRITERS
from embedder.config.source import SourceConfig
from embedder.core import retry
from embedder.core.errors import ConfigError, SourceError, StorageError
from embedder.core.storage import Store
from embedder.source.file_kinds import Ignored
from embedder.source.shards import list_shards
from tests.faulty_proxy import FaultyProxy, break_first
from tests.source.test_shards import NAMES

pytestmark = pytest.mark.s3


def put(bucket: str, *names: str, data: bytes = b"{}\n") -> None:
    """Write objects as they are named."""
    store = Store(bucket)
    for name in names:
        store.fs.call_s3("put_object", Bucket=store.path.partition("/")[0], Key=f"{store.path.partition('/')[2]}/{name}", Body=data)


def listed(uri: str, **settings: object) -> list[str]:
    return [shard.uri for shard in list_shards(SourceConfig.model_validate({"uri": uri, **settings})).shards]


def test_listed_keys_are_opened_as_they_are(bucket: str, read) -> None:
    names = [name.replace("\\", "") for name in NAMES]  # the test's server makes a slash of it
    for name in names:
        put(bucket, name, data=json.dumps({"text": name}).encode())
    assert sorted(read(bucket).texts) == sorted(names)
    for name in names[:3]:
        assert listed(f"{bucket}/{name}") == [f"{bucket}/{name}"]
    put(bucket, "v?versionId=3.jsonl")
    with pytest.raises(ConfigError, match=r"hold \?versionId=; rename them: '.*/v\?versionId=3.jsonl'"):
        listed(bucket)


@pytest.mark.parametrize(("name", "log"), [("a.sqlite", "-wal"), ("a.duckdb", ".wal")])
def test_a_database_file_is_read_from_a_copy_unless_a_log_lies_beside_it(bucket: str, read, tmp_path: Path, name: str, log: str) -> None:
    texts = [f"{number:01000d}" for number in range(3000)]
    rows = pa.table([texts, texts, texts, [datetime(2026, 1, 1, tzinfo=UTC)] * len(texts)], schema=COLUMNS)
    WRITERS[name](rows, tmp_path / name)
    put(bucket, name, data=(tmp_path / name).read_bytes())
    assert read(bucket).texts == texts
    put(bucket, name + log, data=b"")
    assert read(bucket).num_records == len(texts)
    put(bucket, name + log, data=b"commits")
    with pytest.raises(SourceError, match=rf"commits that it lacks are in {bucket}/{name}{log} \(7 bytes"):
        read(bucket)


def test_a_prefix_of_the_patterns_name_wins_over_the_pattern(bucket: str) -> None:
    put(bucket, "rep [2024]/a.jsonl", "rep 2/b.jsonl", "x/c.jsonl")
    assert listed(f"{bucket}/rep [2024]") == listed(f"{bucket}/rep [2024]/*.jsonl") == [f"{bucket}/rep [2024]/a.jsonl"]
    assert listed(f"{bucket}/rep [[]2024]/*") == [f"{bucket}/rep [2024]/a.jsonl"]
    assert listed(f"{bucket}/[rx]*/[bc]*") == [f"{bucket}/rep 2/b.jsonl", f"{bucket}/x/c.jsonl"]
    with pytest.raises(ConfigError, match=r"1 folder matched by the pattern\); end the pattern with /\*\*.* and \[\[\] is a bracket"):
        listed(f"{bucket}/rep [2025]")


def test_a_key_that_stands_for_a_folder_is_no_shard_in_any_format(bucket: str, read) -> None:
    put(bucket, "a.jsonl", "sub/b.jsonl", data=b'{"text": "x"}\n')
    put(bucket, "sub/", "other.jsonl/", "", data=b"")
    for settings in ({}, {"format": "jsonl"}):
        listing = list_shards(SourceConfig.model_validate({"uri": bucket, **settings}))
        assert [shard.uri for shard in listing.shards] == [f"{bucket}/a.jsonl", f"{bucket}/sub/b.jsonl"]
        assert {reason: each.count for reason, each in listing.ignored.items()} == {"folder marker": 3}
    assert read(bucket, format="jsonl").texts == ["x", "x"]
    assert list_shards(SourceConfig(uri=f"{bucket}/*")).ignored["folder matched by the pattern"] == Ignored(
        2, (f"{bucket}/other.jsonl", f"{bucket}/sub")
    )


@pytest.mark.parametrize(("fault", "words"), [("slow_down", "cannot list it"), ("forbidden", "not allowed to list it")])
def test_a_folder_that_cannot_be_listed_is_an_error(proxy: FaultyProxy, bucket: str, fault: str, words: str, monkeypatch) -> None:
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.5)
    put(bucket, "a/1.jsonl", "b/2.jsonl")
    proxy.inject(break_first(10**9, fault, contains="/b/&"))
    with pytest.raises(StorageError, match=words):
        listed(f"{bucket}/*/*.jsonl", storage_options={"endpoint_url": proxy.endpoint})


def test_a_table_around_a_large_source_costs_a_bounded_number_of_requests(proxy: FaultyProxy, bucket: str) -> None:
    put(bucket, *(f"deep/table/y={number // 10}/x={number}/part.parquet" for number in range(40)))

    def count_requests(uri: str) -> int:
        before = proxy.counts().requests
        with pytest.raises(ConfigError, match=f"(holds|lies in) a table .Delta, '{bucket}/deep/table'"):
            listed(uri, format="parquet", storage_options={"endpoint_url": proxy.endpoint})
        return proxy.counts().requests - before

    put(bucket, "deep/table/_delta_log/0.json")
    assert count_requests(f"{bucket}/deep") <= 4, "a look at its own log, one at its size, and the listing shows it"
    assert count_requests(f"{bucket}/deep/table/y=1/x=11") <= 4 + 4 * 3 * 2
    assert count_requests(f"{bucket}/deep/table/*/*/*.parquet") <= 2 + 1 + 5 + 40
