"""A cluster of several nodes, each with its own processes: no row is lost with a node, and a submitted job keeps its exit code."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from embedder.core.storage import Location
from embedder.demo.s3_server import free_ports
from embedder.observe.metrics import METRICS
from embedder.table.history import read_history
from tests.integration.conftest import Site, documents
from tests.integration.runs import Run, start_marked, start_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

START_SECONDS = 120
LEAST_LINEAR = 0.8
"""Of 0.95 where nothing else runs."""
MOST_TIMES_IDEAL = 1.4
"""Of 120 units: 1.08 by the simulation of tests/pipeline/test_skew.py, 1.18 beside other work; of 60, 1.52 where one reader cuts."""


@contextmanager
def run_cluster(*nodes: dict[str, int]) -> Iterator[tuple[str, list, str]]:
    """Start a head without CPUs and workers with these resources; yield the address, the workers, and the head's metrics page."""
    from ray.cluster_utils import Cluster

    patience = {"metrics_report_interval_ms": 1000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "_system_config": patience})
    try:
        workers = [cluster.add_node(**node, object_store_memory=100_000_000) for node in nodes]
        yield cluster.address, workers, f"http://127.0.0.1:{cluster.head_node.metrics_export_port}/metrics"
    finally:
        cluster.shutdown()


def flags(site: Site) -> list[str]:
    return [
        f"--source.uri={site.corpus.uri}", "--source.id_column=id", "--source.rows_per_unit=10", "--chunking.max_tokens=64",
        f"--embedding.model={site.model}", "--compute.dtype=float32", f"--output.uri={site.table_uri}",
    ]  # fmt: skip


@pytest.fixture
def filled_site(tmp_path: Path, make_site) -> Site:
    """A corpus of a dozen units, without the Ray of other tests."""
    site: Site = make_site(str(tmp_path))
    for number in range(3):
        site.corpus.put(f"{number}.jsonl", [*documents(100 * number, 40), "{bad"])
    return site


def wait_for_parts(site: Site, run: Run, count: int) -> None:
    """Wait until a run has written so many parts."""
    while run.process.poll() is None:
        if len(list(Path(site.table_uri).glob("*.parquet"))) >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"the run ended before it had {count} parts:\n{run.log.read_text()[-3000:]}")


def test_a_node_that_dies_in_a_run_loses_no_rows(filled_site: Site, repository: str, tmp_path: Path) -> None:
    site = filled_site
    with run_cluster({"num_cpus": 1}, {"num_cpus": 1}) as (address, workers, metrics_page):
        run = start_run(repository, flags(site), tmp_path / "log", {"RAY_ADDRESS": address, "EMBEDDER_LOG": "json"})
        try:
            wait_for_parts(site, run, 2)
            workers[0].kill_all_processes(check_alive=False, allow_graceful=False)
            assert run.wait() == 0, run.log.read_text()[-3000:]
        finally:
            run.stop()
        metrics = urllib.request.urlopen(metrics_page, timeout=30).read().decode()
    rows = site.rows()
    assert {row["doc_id"] for row in rows} == {each["id"] for number in range(3) for each in documents(100 * number, 40)}
    assert len({(row["doc_id"], row["chunk"]) for row in rows}) == len(rows)
    assert len(site.quarantine()) == 3

    (event,) = read_history(Location(site.table_uri), 5)
    lines = [json.loads(line) for line in run.log.read_text().splitlines() if line.startswith("{")]
    assert {line["run_id"] for line in lines if line["message"].startswith("run ")} == {event.figures["run_id"]}
    known = {f"ray_{metric.name}" + ("_total" if metric.kind == "counter" else "") for metric in METRICS}
    named = set(re.findall(r"^(ray_embedder_\w+)\{", metrics, re.MULTILINE))
    assert named <= known
    assert named >= {"ray_embedder_documents_total", "ray_embedder_tokens_total", "ray_embedder_done_share"}


def test_gpu_nodes_encode_and_cpu_nodes_read_and_write(filled_site: Site, repository: str, tmp_path: Path) -> None:
    site, notes = filled_site, tmp_path / "notes"
    notes.mkdir()
    # two actors take half a GPU and one CPU each, which leaves no CPU on that node for readers
    shared = ["--compute.device=cuda", "--compute.num_gpus=0.5", "--compute.actors=2"]
    with run_cluster({"num_cpus": 2, "num_gpus": 1}, {"num_cpus": 1}) as (address, workers, _):
        command = [sys.executable, "-m", "tests.integration.made_up_gpus", str(notes), *flags(site), *shared]
        run = start_marked(command, repository, tmp_path / "log", {"RAY_ADDRESS": address})
        try:
            assert run.wait() == 0, run.log.read_text()[-3000:]
        finally:
            run.stop()
        gpu_node, cpu_node = (worker.node_id for worker in workers)
    noted = [path.name.split() for path in notes.iterdir()]
    assert {stage for stage, *_ in noted} == {"read", "encode", "side-by-side", "write"}
    assert {(node, gpus) for stage, node, gpus, _ in noted if stage == "encode"} == {(gpu_node, "0")}
    assert len([stage for stage, *_ in noted if stage == "encode"]) == 2  # processes
    assert {(node, gpus) for stage, node, gpus, _ in noted if stage == "read"} == {(cpu_node, "none")}
    assert len({row["doc_id"] for row in site.rows()}) == 120


def test_eight_gpus_of_a_stated_rate_are_kept_busy(repository: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.stand_in_gpus", str(tmp_path / "run"), "8", "5000", "6"]
    printed = subprocess.run(command, cwd=repository, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert json.loads(printed.splitlines()[-1])["share_of_linear"] > LEAST_LINEAR


def test_half_of_the_corpus_in_one_shard_and_a_slow_node_keep_no_gpu_waiting(repository: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.skewed_shards", str(tmp_path / "run"), "2", "120", "encoders"]
    printed = subprocess.run(command, cwd=repository, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert json.loads(printed.splitlines()[-1])["times_ideal"] < MOST_TIMES_IDEAL


@contextmanager
def run_ray(folder: Path) -> Iterator[dict[str, str]]:
    """Start a head that requires a token, by `ray start`; yield the environment for submitting jobs to it."""
    port, dashboard, agent, client = free_ports(4)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "for-this-test-only-" + "0" * 32, "PATH": path}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    # paths of Unix sockets are limited, and pytest's folders are too long
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        head = start_marked([*command, "--num-cpus=2", f"--temp-dir={short}"], str(folder), folder / "ray.log", environment)
        try:
            wait_for_dashboard(head, dashboard)
            yield environment | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "PYTHON": sys.executable}
        finally:
            head.stop()


def wait_for_dashboard(head: Run, port: int) -> None:
    """Wait until jobs can be submitted."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    pytest.fail(f"Ray did not start:\n{head.log.read_text()[-3000:]}")


def test_a_submitted_job_ends_with_its_own_exit_code(filled_site: Site, repository: str, tmp_path: Path) -> None:
    site = filled_site
    with run_ray(tmp_path) as environment:

        def submit(*more: str) -> subprocess.CompletedProcess[str]:
            command = ["deploy/submit.sh", "jobs.embed", *flags(site), *more]
            return subprocess.run(
                command, cwd=repository, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
            )

        wrong = submit("--embedding.depth=99")
        assert wrong.returncode == 2, wrong.stdout + wrong.stderr
        assert "embedding.depth=99" in wrong.stdout
        assert not Path(site.table_uri).exists()
        done = submit()
        assert done.returncode == 0, done.stdout + done.stderr
    (event,) = read_history(Location(site.table_uri), 5)
    assert event.figures["stats"]["documents"] == 123
    assert re.fullmatch("[0-9a-f]{40}", event.environment["revision"])  # git's files were not uploaded
