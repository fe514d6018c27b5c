"""Runs of the job in processes of their own, to be killed in whole or in part."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

WORKERS = {"encoder": "EncoderActor", "reader": "prepare_tasks", "writer": "write_unit"}
"""Titles that Ray gives the processes."""
AGENT = "Agent"
"""Ray's agents, which hold no data, sometimes outlive a killed process group."""
RUN_SECONDS = 400
"""A run of these tests takes 10 s on two idle cores; the cores may be busy."""


@dataclass(frozen=True)
class Run:
    """One run of the job, in processes with a mark in their environment."""

    process: subprocess.Popen[str]
    log: Path
    mark: str

    def processes(self) -> dict[int, str]:
        """Return the titles of the run's processes, Ray's included, by process id."""
        found = {}
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdecimal() and self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def stop(self) -> None:
        """Kill all remaining processes."""
        for number in self.processes():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()

    def kill_worker(self, kind: str) -> bool:
        """Kill one worker of a kind; return whether there was one."""
        for number, title in self.processes().items():
            if WORKERS[kind] in title and number != self.process.pid:
                os.kill(number, signal.SIGKILL)
                return True
        return False

    def wait_and_kill_worker(self, kind: str) -> bool:
        """Kill the first worker of a kind; return False if the run ended without one."""
        while self.process.poll() is None:
            if self.kill_worker(kind):
                return True
            time.sleep(0.02)
        return False

    @property
    def never_began(self) -> bool:
        """Whether Ray did not start within its 30 seconds, as on a busy machine."""
        return "timed out during startup" in self.log.read_text()

    def wait(self) -> int:
        """Wait for the run to end; return its exit code."""
        try:
            return self.process.wait(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"a run did not end in {RUN_SECONDS} s:\n{self.log.read_text()[-3000:]}\n{self.processes()}")

    def wait_for_workers_to_go(self, seconds: float) -> int:
        """Wait for the workers of a killed driver to end; kill Ray's remaining agents, and return their number."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (left := self.processes()):
            if all(AGENT in title for title in left.values()) and time.monotonic() > deadline - seconds + 5:
                break
            time.sleep(0.1)
        left = self.processes()
        assert all(AGENT in title for title in left.values()), f"processes outlived their driver by {seconds} s: {left}"
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return len(left)


def start_run(repository: str, flags: Sequence[str], log: Path, environment: Mapping[str, str]) -> Run:
    """Start the job with a Ray of its own as the leader of a process group, logging to a file."""
    return start_marked([sys.executable, "-m", "jobs.embed", *flags], repository, log, environment)


def start_marked(command: Sequence[str], folder: str, log: Path, environment: Mapping[str, str]) -> Run:
    """Start a command whose processes carry a mark, as the leader of a process group, logging to a file."""
    mark = f"run-{uuid.uuid4().hex}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "RAY_ADDRESS": "local", **environment, "RUN_MARK": mark},
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    return Run(process, log, mark)
