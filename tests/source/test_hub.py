"""Data sets and buckets of the hub as sources, over HTTP."""

import json

import pyarrow as pa
import pytest

from embedder.config.source import SourceConfig
from embedder.core import retry
from embedder.core.errors import ConfigError, EmptySourceError, SourceError, StorageError
from embedder.core.storage import Location
from embedder.core.units import Task
from embedder.source.documents import read_units
from embedder.source.selection import select_shards
from embedder.source.shards import list_shards
from tests.hub_server import serve_hub

NAME = "datasets/acme/docs"


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


FILES = {f"data/lang=de/{number}.jsonl": lines(f"text {number}") for number in range(5)} | {"README.md": b"#", ".gitattributes": b""}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.05)
    with serve_hub() as hub:
        hub.push(NAME, FILES)
        yield hub


def source_of(hub, path=NAME, **settings):
    return SourceConfig(uri=f"hf://{path}", storage_options={"endpoint": hub.url}, **settings)


def read(source, shards=None):
    listing, metadata = select_shards(source, list_shards(source))
    task = Task("0" * 16, "0" * 32, tuple(shards or listing.shards))
    return pa.concat_tables([unit.documents for unit in read_units(task, source, metadata)])


@pytest.mark.parametrize("path", ["", "/data", "/data/**/*.jsonl", "/data/lang=de/[0-9].jsonl", "@main/data"])
def test_a_folder_a_pattern_and_a_revision_are_read_with_their_folders(hub, path):
    got = read(source_of(hub, NAME + path, metadata_columns=["lang"]))
    assert got["text"].to_pylist() == [f"text {number}" for number in range(5)]
    assert got["lang"].to_pylist() == ["de"] * 5
    assert got["shard"][0].as_py() == f"hf://{NAME}{'@main' if '@' in path else ''}/data/lang=de/0.jsonl"


@pytest.mark.parametrize("revision", ["refs/convert/parquet", "refs%2Fconvert%2Fparquet"])
def test_odd_names_and_a_revision_with_slashes_are_read(hub, revision):
    names = ["50%25.jsonl", "a b#1.jsonl", "a@b/c.jsonl", "ü/x[1].jsonl"]
    hub.push(NAME, {name: lines(name) for name in names}, "refs/convert/parquet")
    got = read(source_of(hub, f"{NAME}@{revision}"))
    assert got["text"].to_pylist() == names
    assert got["shard"].to_pylist() == [f"hf://{NAME}@{revision}/{name}" for name in names]


def test_one_file_is_read_and_others_are_counted(hub):
    assert read(source_of(hub, f"{NAME}/data/lang=de/3.jsonl"))["text"].to_pylist() == ["text 3"]
    assert {reason: each.count for reason, each in list_shards(source_of(hub)).ignored.items()} == {"hidden": 1, "unknown suffix": 1}


def test_an_edit_of_the_same_size_changes_the_version_and_the_commit_and_no_other_shard(hub):
    source = source_of(hub)
    first = list_shards(source)
    commit = hub.push(NAME, {"data/lang=de/1.jsonl": lines("TEXT 1"), "README.md": b"!"})
    second = list_shards(source)
    assert [a.uri for a, b in zip(first.shards, second.shards, strict=True) if a.version != b.version] == [first.shards[1].uri]
    assert second.table == f"hf://{NAME}, revision main at commit {commit}"
    assert second.table != first.table


def test_a_pinned_commit_stays_as_it_was(hub):
    pinned = hub.commit(NAME, "main")
    hub.push(NAME, {"data/lang=de/1.jsonl": lines("TEXT 1")})
    source = source_of(hub, f"{NAME}@{pinned}/data")
    assert read(source)["text"][1].as_py() == "text 1"
    assert list_shards(source).table == f"hf://{NAME}, revision {pinned} at commit {pinned}"


def test_a_shard_that_changes_while_it_is_read_is_a_source_error(hub):
    source = source_of(hub)
    shards = list_shards(source).shards
    hub.push(NAME, {"data/lang=de/4.jsonl": lines("TEXT 4")})
    with pytest.raises(SourceError, match=r"4.jsonl: changed while it was read \(listed as version"):
        read(source, shards)


def test_a_bucket_is_read_and_its_versions_are_hashes(hub):
    hub.push("buckets/acme/raw", FILES, "")
    source = source_of(hub, "buckets/acme/raw/data")
    first = list_shards(source)
    assert read(source)["text"].to_pylist() == [f"text {number}" for number in range(5)]
    hub.push("buckets/acme/raw", {"data/lang=de/1.jsonl": lines("TEXT 1")}, "")
    second = list_shards(source)
    assert [a.version == b.version for a, b in zip(first.shards, second.shards, strict=True)] == [True, False, True, True, True]
    assert second.table == ""


def test_a_large_parquet_file_is_read_in_ranges(hub, tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [f"{number:07d}" * 40 for number in range(20_000)]}), tmp_path / "a.parquet", compression="none")
    hub.push("datasets/acme/large", {"a.parquet": (tmp_path / "a.parquet").read_bytes()})
    assert len(read(source_of(hub, "datasets/acme/large"))) == 20_000
    assert sum("/tree/" in each for each in hub.requests) <= 6


def test_a_busy_hub_is_asked_again_and_one_that_stays_busy_is_a_storage_error(hub):
    hub.busy = 2
    assert len(list_shards(source_of(hub)).shards) == 5
    hub.busy = 10**6
    with pytest.raises(StorageError, match=rf"hf://{NAME}/_delta_log: cannot look at it \(.*503"):
        list_shards(source_of(hub))


def test_a_hub_that_cannot_be_reached_is_a_storage_error(hub):
    with pytest.raises(StorageError, match=rf"hf://{NAME}/_delta_log: cannot look at it"):
        list_shards(SourceConfig(uri=f"hf://{NAME}", storage_options={"endpoint": "http://127.0.0.1:9"}))


def test_the_token_of_the_environment_is_sent(hub, monkeypatch):
    hub.token = "hf_secret"
    with pytest.raises(StorageError, match=rf"hf://{NAME}: not found; check the path, the revision, and HF_TOKEN if it is private"):
        list_shards(source_of(hub))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert len(list_shards(source_of(hub)).shards) == 5


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("datasets/acme/nothing", "not found"),
        (f"{NAME}@no-such-branch", "not found"),
        (f"{NAME}/no/such/folder", "no file is there"),
        ("datasets/acme", "not a uri that can be opened"),
        ("datasets", "not a uri that can be opened"),
    ],
)
def test_a_wrong_place_is_refused_with_its_name(hub, path, problem):
    with pytest.raises((StorageError, ConfigError, EmptySourceError), match=problem) as caught:
        list_shards(source_of(hub, path))
    assert path in str(caught.value)


def test_offline_mode_is_not_retried(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 60.0)
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE"):
        Location(f"hf://{NAME}", {"endpoint": hub.url}).open().list_files()
