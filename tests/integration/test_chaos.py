"""Seeded fault injection into real runs on a bad connection while the source changes: no row is lost or duplicated.

CHAOS_ROUNDS and CHAOS_SEED set the length and the seed; `make chaos` runs many rounds and prints the injected faults.
"""

import base64
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder.core.storage import Location
from embedder.demo.s3_server import S3Server
from embedder.table.delta import read_table
from tests.faulty_proxy import Faults, FaultyProxy
from tests.integration.conftest import Corpus, Site, documents, sentences
from tests.integration.runs import WORKERS, Run, start_run

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "2"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(1200 + 200 * ROUNDS)]

RATES = {"slow_down": 0.03, "throttle": 0.01, "error": 0.01, "reset_before": 0.02, "reset_after": 0.02, "truncate": 0.02, "delay": 0.03}
DAMAGES = (
    "driver", "driver", "group", "group", "encoder", "reader", "writer", "encoder and driver", "terminate", "edit", "edit", "compact"
)  # fmt: skip
Rows = list[dict[str, Any]]


@dataclass
class Source:
    """The expected shards; each edit changes one and writes it."""

    corpus: Corpus
    draw: random.Random
    shards: dict[str, Rows] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(0, 100))

    def fill(self) -> None:
        """Write large shards, each a task, and small ones, which share a bucket."""
        for name in ("a.jsonl.gz", "b.parquet", "deep/c.jsonl.gz", "small-d.jsonl.gz", "small-e.parquet"):
            self.put(name, self.make_rows(name, self.draw.randint(15, 35)))

    def make_rows(self, name: str, count: int) -> Rows:
        """Return documents of one to several chunks, and blank, empty, null and repeated ones."""
        rows = documents(next(self.numbers), count)
        bad = [
            {"id": "blank", "text": " \n"},
            {"id": "empty", "text": ""},
            {"id": "null", "text": None},
            {"id": rows[0]["id"], "text": "twice"},
        ]
        rows += [{**rows[0], **each} for each in bad]
        self.draw.shuffle(rows)
        padding = random.Random(name).randbytes(300_000) if not name.startswith("small") else b""
        return [row | {"padding": base64.b64encode(padding).decode() if number == 0 else ""} for number, row in enumerate(rows)]

    def put(self, name: str, rows: Rows) -> None:
        """Write a shard; a JSONL shard has a line that is not JSON."""
        self.shards[name] = rows
        self.corpus.put(name, rows if name.endswith(".parquet") else [*rows, "{bad"])

    def edit(self) -> str:
        """Make a random edit; return its kind."""
        name = self.draw.choice(sorted(self.shards))
        kind = self.draw.choice(["text", "metadata", "add", "delete", "rename", "new shard", "remove shard"])
        rows = [dict(row) for row in self.shards[name]]
        if kind in ("rename", "remove shard") and len(self.shards) > 3:
            if kind == "rename":
                self.put(name.replace(".", f"-{next(self.numbers)}.", 1), rows)
            self.corpus.remove(name)
            del self.shards[name]
        elif kind == "new shard":
            self.put(f"{self.draw.choice(['small-', 'n'])}{next(self.numbers)}{self.draw.choice(['.jsonl.gz', '.parquet'])}", rows)
        elif kind == "metadata":
            self.put(name, [row | {"topic": f"topic {next(self.numbers)}"} if self.draw.random() < 0.3 else row for row in rows])
        elif kind == "delete":
            self.put(name, rows[:1] + [row for row in rows[1:] if self.draw.random() < 0.8])
        elif kind == "add":
            self.put(name, rows + [{**rows[0], **row, "padding": ""} for row in documents(next(self.numbers), 4)])
        else:
            kind = "text"
            self.put(name, [row | {"text": sentences(next(self.numbers), 30)} if self.draw.random() < 0.2 else row for row in rows])
        return kind


def flags_of(site: Site) -> list[str]:
    """Return flags for a cheap depth and size of the real model, whose vectors still distinguish texts."""
    return [
        f"--source.uri={site.corpus.uri}", "--source.id_column=id", "--source.metadata_columns", "topic", "meta.url",
        "--source.rows_per_unit=7", "--chunking.max_tokens=64", "--chunking.overlap_tokens=8", f"--embedding.model={site.model}",
        "--embedding.depth=1", "--embedding.dim=32", "--compute.dtype=float32", f"--output.uri={site.table_uri}",
        "--output.max_removed_fraction=1",
    ]  # fmt: skip


class Chaos:
    """Random draws, counts of the injected faults, and the runs."""

    def __init__(self, site: Site, server: S3Server, proxy: FaultyProxy, folder: Path) -> None:
        self.site, self.server, self.proxy, self.folder = site, server, proxy, folder
        self.draw = random.Random(SEED)
        self.counts: Counter[str] = Counter()
        self.runs: list[Run] = []
        # short, since Ray puts sockets there, whose paths have at most 107 bytes
        self.ray_folder = tempfile.mkdtemp(prefix="chaos")

    def start(self, repository: str, site: Site | None = None) -> Run:
        """Start the job behind the proxy, or on another site without it."""
        endpoint = self.server.endpoint if site else self.proxy.endpoint
        environment = self.server.environment | {"AWS_ENDPOINT_URL": endpoint, "RAY_TMPDIR": self.ray_folder}
        often = [] if site else self.draw.choice([[], ["--output.publish_every=5 rows"], ["--output.publish_every=40 rows"]])
        self.counts["runs that publish as they go"] += bool(often)
        flags = [*flags_of(site or self.site), *often]
        self.runs.append(start_run(repository, flags, self.folder / f"{len(self.runs)}.log", environment))
        return self.runs[-1]

    def wait_for_a_moment(self, run: Run) -> None:
        """Wait some seconds, or for some parts, or for the start of a commit."""
        kind = self.draw.choice(["seconds", "parts", "parts", "commit"])
        seconds, parts = self.draw.uniform(0.5, 10), self.draw.randint(1, 12)
        before = self.proxy.counts()
        started, deadline = time.monotonic(), time.monotonic() + 60
        while run.process.poll() is None and time.monotonic() < deadline:
            counts = self.proxy.counts()
            is_now = {
                "seconds": time.monotonic() - started > seconds,
                "parts": len(list(part_writes(counts.written))) - len(list(part_writes(before.written))) >= parts,
                "commit": counts.commits > before.commits,
            }
            if is_now[kind]:
                break
            time.sleep(0.01)

    def check_end(self, run: Run, counted: str) -> None:
        """Check that a run succeeds by itself."""
        code = run.wait()
        self.counts["Ray did not start" if run.never_began else counted] += 1
        assert code == 0 or run.never_began, run.log.read_text()[-3000:]

    def maintain(self, repository: str, *flags: str) -> None:
        """Run maintenance on the table, behind the proxy; its commit may lose against a run's."""
        environment = self.server.environment | {"AWS_ENDPOINT_URL": self.proxy.endpoint}
        command = [sys.executable, "-m", "jobs.maintain", self.site.table_uri, *flags]
        done = subprocess.run(command, cwd=repository, env=os.environ | environment, capture_output=True, text=True, check=False)
        self.counts[f"maintenance {flags[0]}: exit {done.returncode}"] += 1
        assert done.returncode == 0 or "another" in done.stderr, done.stdout + done.stderr

    def check(self, repository: str) -> None:
        """Check the table; only its quarantine may lag, if a run was killed right after a commit, and a repair closes that."""
        command = [sys.executable, "-m", "jobs.maintain", self.site.table_uri, "--check", "--deep"]
        environment = os.environ | self.server.environment | {"AWS_ENDPOINT_URL": self.proxy.endpoint}
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
        self.counts[f"maintenance --check: exit {done.returncode}"] += 1
        if done.returncode:
            *faults, _ = done.stdout.strip().splitlines()
            assert faults, done.stdout + done.stderr
            assert all("quarantine table" in fault for fault in faults), done.stdout + done.stderr
            self.maintain(repository, "--check", "--deep", "--repair")

    def disturb(self, kind: str, run: Run, source: Source, repository: str) -> None:
        """Edit the source or compact the table while a run goes on; the run may fail by name."""
        if kind == "edit":
            self.counts[f"edit in a run: {source.edit()}"] += 1
        elif read_table(Location(self.site.table_uri)):
            self.maintain(repository, "--compact")
        code, log = run.wait(), run.log.read_text()
        self.counts[f"{kind} in a run: exit {code}"] += 1
        reasons = ("changed while it was read", "No such file", "not found", "another run")
        assert code == 0 or run.never_began or (code == 1 and "Traceback" not in log and any(each in log for each in reasons)), log[-3000:]

    def damage(self, run: Run, source: Source, repository: str) -> None:
        """Inject one fault, and check the run's exit code."""
        kind = self.draw.choice(DAMAGES)
        self.wait_for_a_moment(run)
        if run.process.poll() is not None:
            self.check_end(run, "ended before the damage")
            return
        if kind in ("edit", "compact"):
            self.disturb(kind, run, source, repository)
            return
        worker = kind.split(" and ")[0]
        if worker in WORKERS:
            found = run.wait_and_kill_worker(worker)
            self.counts[f"kill -9 {kind}"] += found
            if "driver" not in kind or not found:
                self.check_end(run, "ended well although a worker was killed" if found else "ended before the damage")
                return
            time.sleep(self.draw.uniform(0, 2))
        else:
            self.counts["SIGTERM" if kind == "terminate" else f"kill -9 {kind}"] += 1
        with suppress(ProcessLookupError):
            if kind == "group":
                os.killpg(run.process.pid, signal.SIGKILL)
            else:
                run.process.send_signal(signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
        code = run.wait()  # a run that is still importing has no SIGTERM handler yet
        allowed = (143, -signal.SIGTERM, 0) if kind == "terminate" else (-signal.SIGKILL, 0)
        assert code in allowed or run.never_began, (kind, code, run.log.read_text()[-3000:])

    def stop(self) -> None:
        """Kill all runs and remove their files."""
        for run in self.runs:
            run.stop()
        shutil.rmtree(self.ray_folder, ignore_errors=True)


def part_writes(written: dict[str, list[str]]) -> Iterator[list[str]]:
    """Return the checksums of the bytes written for each part."""
    return (tried for path, tried in written.items() if path.endswith(".parquet") and "/table/" in path and "/_" not in path)


@pytest.fixture
def chaos(bucket: str, make_site: Callable[[str], Site], s3_server: S3Server, shared_proxy: FaultyProxy, tmp_path: Path) -> Iterator[Chaos]:
    made = Chaos(make_site(bucket), s3_server, shared_proxy, tmp_path)
    shared_proxy.inject(Faults(RATES, seed=SEED))
    yield made
    made.stop()
    shared_proxy.inject(Faults())


def places(rows: Rows) -> Counter[tuple[str, int, int]]:
    return Counter((row["shard"], row["row"], row["chunk"]) for row in rows)


def test_faults_neither_lose_nor_duplicate_rows(chaos: Chaos, repository: str) -> None:
    before = chaos.proxy.counts()
    source = Source(chaos.site.corpus, chaos.draw)
    source.fill()
    for number in range(ROUNDS):
        for _ in range(chaos.draw.choice([0, 1, 2]) if number else 0):
            chaos.counts[f"edit: {source.edit()}"] += 1
        run = chaos.start(repository)
        chaos.damage(run, source, repository)
        if chaos.draw.random() < 0.5:
            chaos.counts["Ray's agents left behind"] += run.wait_for_workers_to_go(60)
        if read_table(Location(chaos.site.table_uri)):
            assert max(places(chaos.site.rows()).values()) == 1, "no version has a duplicate row"
            if chaos.draw.random() < 0.3:
                chaos.maintain(repository, "--vacuum", "--older-than-hours", "0", "--insist")
            chaos.check(repository)
    finish(chaos, repository)
    fresh = replace(chaos.site, table_uri=f"{chaos.site.table_uri}-fresh")
    assert chaos.start(repository, fresh).wait() == 0
    report = compare(chaos.site, fresh)
    for run in chaos.runs:
        chaos.counts["Ray's agents left behind"] += run.wait_for_workers_to_go(60)
    after = chaos.proxy.counts()
    tried = list(part_writes(after.written))
    report |= {
        "requests": after.requests - before.requests,
        "parts written": len(tried),
        "parts embedded twice": sum(map(len, tried)) - len(tried),
    }
    report |= {f"injected {fault}": count - before.injected.get(fault, 0) for fault, count in after.injected.items()}
    print(json.dumps({"rounds": ROUNDS, "seed": SEED} | dict(sorted(chaos.counts.items())) | report, indent=1))
    assert report["rows lost"] == report["rows twice"] == report["rows too many"] == 0
    assert sum(after.injected.values()) > sum(before.injected.values())


def finish(chaos: Chaos, repository: str) -> None:
    """Let a run end by itself, still on the bad connection, and check that the next one has nothing to do."""
    for _ in range(3):
        run = chaos.start(repository)
        if run.wait() == 0:
            break
        chaos.counts["last runs that failed"] += 1
        print(run.log.read_text()[-3000:])
    assert run.process.returncode == 0
    again = chaos.start(repository)
    assert again.wait() == 0
    assert "nothing to do" in again.log.read_text()


def compare(site: Site, fresh: Site) -> dict[str, int]:
    """Compare all columns, vectors and the quarantine with those of an undisturbed table."""
    mine, theirs = site.rows(), fresh.rows()
    lost, many = places(theirs) - places(mine), places(mine) - places(theirs)
    report = {
        "rows": len(theirs),
        "rows lost": lost.total(),
        "rows too many": many.total(),
        "rows twice": sum(count - 1 for count in places(mine).values()),
        "quarantined": len(fresh.quarantine()),
    }
    if not lost and not many:
        plain = [[{name: row[name] for name in row if name != "embedding"} for row in rows] for rows in (mine, theirs)]
        assert plain[0] == plain[1]
        np.testing.assert_allclose([row["embedding"] for row in mine], [row["embedding"] for row in theirs], atol=1e-5)
        rejects = [sorted(json.dumps(row, sort_keys=True) for row in each.quarantine()) for each in (site, fresh)]
        assert rejects[0] == rejects[1]
    return report
