"""Storage behind a fault-injecting proxy of a real S3 server: every verb succeeds after retries, or is refused at once."""

import gzip
import io
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.config.source import SourceConfig
from embedder.core import retry as retries
from embedder.core.delta_options import delta_options
from embedder.core.errors import StorageError
from embedder.core.storage import Location, Store
from embedder.core.units import Task
from embedder.demo.s3_server import S3Server
from embedder.source.documents import read_units
from embedder.source.shards import list_shards
from embedder.table.delta import read_table
from tests.faulty_proxy import NO_FAULTS, Faults, FaultyProxy, break_first

pytestmark = pytest.mark.s3

FOR_EVER = 10**9
BUSY = ("slow_down", "throttle", "error", "conflict")
BROKEN = ("reset_before", "reset_after", "truncate")
DATA = random.Random(0).randbytes(3 << 20)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are about what is tried again, and wait a tenth as long between."""
    monkeypatch.setattr(retries, "_FIRST_PAUSE_SECONDS", 0.05)


def store(uri: str, proxy: FaultyProxy) -> Store:
    """Return a store with the proxy's own options: fsspec caches filesystems by their options."""
    return Store(uri, {"endpoint_url": proxy.endpoint})


def read(found: Store) -> bytes:
    with found.open_input() as file:
        return b"".join(iter(lambda: file.read(1 << 20), b""))


VERBS: dict[str, Callable[[Store, Store, Store], object]] = {
    "list": lambda folder, there, new: [each.size_bytes for each in folder.list_files()],
    "glob": lambda folder, there, new: [each.size_bytes for each in Store(f"{folder.uri}/*.bin", folder._options).list_files()],
    "list a folder": lambda folder, there, new: [each.size_bytes for each in folder.list_folder()],
    "look": lambda folder, there, new: getattr(there.info(), "size_bytes", None),
    "read": lambda folder, there, new: read(there) == DATA,
    "write": lambda folder, there, new: (new.write_once(b"new") in (True, False), read(new)),
    "remove": lambda folder, there, new: (there.remove(), there.info()),
}
RESULTS = {"list": [len(DATA)], "glob": [len(DATA)], "list a folder": [len(DATA)], "look": len(DATA), "read": True,
           "write": (True, b"new"), "remove": (None, None)}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", [*BUSY, *BROKEN])
def test_every_verb_succeeds_after_retries(proxy: FaultyProxy, bucket: str, verb: str, fault: str) -> None:
    folder, there, new = (store(f"{bucket}{name}", proxy) for name in ("", "/there.bin", "/new.bin"))
    there.write_once(DATA)
    before = proxy.injected(fault)
    proxy.inject(break_first(2, fault))
    assert VERBS[verb](folder, there, new) == RESULTS[verb]
    assert proxy.injected(fault) - before in (1, 2), "a response without a body cannot be truncated: it passes as one request"


def test_retries_outlast_those_of_s3fs(proxy: FaultyProxy, bucket: str) -> None:
    proxy.inject(break_first(7, "slow_down"))
    assert store(f"{bucket}/new.bin", proxy).write_once(b"new")


def test_a_write_whose_response_was_lost_keeps_its_bytes(proxy: FaultyProxy, bucket: str) -> None:
    new = store(f"{bucket}/new.bin", proxy)
    proxy.inject(break_first(1, "reset_after", "PUT"))
    assert new.write_once(b"first") is False
    assert new.write_once(b"second") is False
    assert read(new) == b"first"


def test_writes_succeed_while_half_of_all_requests_fail(proxy: FaultyProxy, bucket: str) -> None:
    proxy.inject(Faults({"slow_down": 0.2, "error": 0.1, "throttle": 0.1, "reset_before": 0.05, "reset_after": 0.05}, seed=1))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: store(f"{bucket}/{number}", proxy).write_once(b"data"), range(150)))
    proxy.inject(NO_FAULTS)
    assert [each.size_bytes for each in store(bucket, proxy).list_files()] == [4] * 150


@pytest.mark.parametrize("fault", ["slow_down", "reset_before"])
def test_patience_ends(proxy: FaultyProxy, bucket: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 1.5)
    proxy.inject(break_first(FOR_EVER, fault))
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"new.bin: cannot write it"):
        store(f"{bucket}/new.bin", proxy).write_once(b"new")
    assert time.monotonic() - started < 1.5 + 3, "the last call may take its 2 seconds"


def test_a_missing_server_is_an_error_within_the_patience(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://docs/a.jsonl: cannot look at it .*127.0.0.1:9"):
        Store("s3://docs/a.jsonl", {"endpoint_url": "http://127.0.0.1:9"}).info()
    assert time.monotonic() - started < 5


REFUSED = {"forbidden": "not allowed", "no_bucket": "not found; check the path, the bucket's name", "wrong_region": "cannot"}


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("verb", ["list", "read", "write"])
def test_permanent_errors_are_raised_at_once_with_the_buckets_name(proxy: FaultyProxy, bucket: str, verb: str, fault: str) -> None:
    folder, there, new = (store(f"{bucket}{name}", proxy) for name in ("", "/there.bin", "/new.bin"))
    there.write_once(DATA)
    proxy.inject(break_first(FOR_EVER, fault))
    started = time.monotonic()
    with pytest.raises(StorageError, match=rf"s3://tests/.*: .*{REFUSED[fault]}"):
        VERBS[verb](folder, there, new)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("fault", ["forbidden", "wrong_region"])
def test_a_forbidden_table_is_refused_at_once(proxy: FaultyProxy, bucket: str, fault: str) -> None:
    proxy.inject(break_first(FOR_EVER, fault))
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://tests/.*: the table cannot be opened .*check the uri"):
        read_table(Location(bucket, {"endpoint_url": proxy.endpoint}))
    assert time.monotonic() - started < 1


def test_delta_rs_accepts_the_retry_settings() -> None:
    from deltalake import DeltaTable

    options = delta_options("s3://docs/table", {"endpoint_url": "http://127.0.0.1:9"}) | {"backoff_config.max_backoff": "200ms"}
    started = time.monotonic()
    with pytest.raises(OSError, match=r"(?s)max_retries.*7.*retry_timeout.*60s"):
        DeltaTable("s3://docs/table", storage_options=options | {"max_retries": "7"})
    assert 0.5 < time.monotonic() - started < 5
    assert set(delta_options("gs://docs/table", {})) < set(options)
    assert delta_options("/docs/table", {}) == {}
    for name in ("max_retries", "retry_timeout", "backoff_config.init_backoff", "backoff_config.max_backoff", "timeout", "connect_timeout"):
        assert name in options
        with pytest.raises(Exception, match=r"failed to parse"):
            DeltaTable("s3://docs/table", storage_options=options | {name: "not a number"})


def records(count: int) -> list[dict[str, object]]:
    draw = random.Random(1)
    return [{"id": f"d{number}", "text": draw.randbytes(200).hex()} for number in range(count)]


def to_jsonl_gz(rows: list[dict[str, object]]) -> bytes:
    return gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def to_parquet(rows: list[dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=500)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "encode"), [("a.jsonl.gz", to_jsonl_gz), ("a.parquet", to_parquet), ("a.jsonl", None)])
@pytest.mark.parametrize("seed", range(3))
def test_a_shard_whose_read_breaks_midway_is_resumed_with_each_row_once(
    proxy: FaultyProxy, bucket: str, name: str, encode: Callable[[list[dict[str, object]]], bytes] | None, seed: int, monkeypatch
) -> None:
    monkeypatch.setattr("embedder.core.storage.READ_BLOCK_BYTES", 100_000)
    rows = records(4_000)
    data = encode(rows) if encode else gzip.decompress(to_jsonl_gz(rows))
    assert len(data) > 800_000
    store(f"{bucket}/{name}", proxy).write_once(data)
    source = SourceConfig(uri=bucket, id_column="id", rows_per_unit=1000, storage_options={"endpoint_url": proxy.endpoint})
    task = Task("k", "v", list_shards(source).shards)
    before = proxy.injected("truncate")
    proxy.inject(Faults({"truncate": 0.3, "reset_after": 0.1, "throttle": 0.1}, seed=seed))
    units = list(read_units(task, source, pa.schema([])))
    assert [doc_id for unit in units for doc_id in unit.documents["doc_id"].to_pylist()] == [row["id"] for row in rows]
    assert [text for unit in units for text in unit.documents["text"].to_pylist()] == [row["text"] for row in rows]
    assert proxy.injected("truncate") - before > 0


def test_a_shard_replaced_between_two_blocks_is_refused(proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedder.core.storage.READ_BLOCK_BYTES", 100_000)
    there = store(f"{bucket}/a.bin", proxy)
    there.write_once(DATA)

    def read_while_it_is_replaced() -> None:
        with there.open_input() as file:
            file.read(1000)
            there.fs.pipe_file(there.path, DATA[::-1])
            file.read()

    with pytest.raises(StorageError, match=r"a.bin: cannot read it .*no longer exists"):
        read_while_it_is_replaced()


def test_truncated_responses_are_fetched_again(tmp_path: Path) -> None:
    from embedder.core.retry import fetch_whole

    whole, given = b"0123456789", [b"012", b"", b"01234567"]
    assert fetch_whole(lambda start, stop: given.pop(0) if given else whole[start:stop], len(whole), "s3://docs/a")(0, 12) == whole
