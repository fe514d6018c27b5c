"""Every job has the same exit codes and the same spelling of flags."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from embedder.config.cli import Terminated, hyphenate_flags, run_job
from embedder.core.errors import ConfigError, EmptySourceError, StorageError


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ConfigError("x"), 2), (EmptySourceError("x"), 2), (StorageError("x"), 1), (ZeroDivisionError(), 1), (SystemExit(3), 3),
        (KeyboardInterrupt(), 130), (Terminated(), 143), (SystemExit(15), 143),
    ],
    ids=repr,
)  # fmt: skip
def test_the_exit_code_tells_how_a_job_ended(monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int) -> None:
    monkeypatch.setattr("embedder.config.cli.signal.signal", lambda *_: None)
    monkeypatch.setattr("embedder.config.cli.kill_descendants", lambda: None)
    monkeypatch.setattr("embedder.config.cli.os._exit", sys.exit)

    def job(args: Sequence[str]) -> int:
        raise raised

    with pytest.raises(SystemExit) as stopped:
        run_job(job)
    assert stopped.value.code == code


@pytest.mark.real
def test_a_reader_that_closed_the_pipe_ends_a_job_without_a_traceback() -> None:
    code = "from embedder.config.cli import run_job; run_job(lambda _: print('x' * 1_000_000) or 0)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        printed = process.stderr.read()
    assert (process.returncode, printed) == (141, b"")


@pytest.mark.real
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["interrupt", "terminate"])
def test_a_second_signal_ends_a_job_at_once_in_one_line_and_its_processes_with_it(number: signal.Signals, code: int) -> None:
    script = """
import atexit, signal, subprocess, sys, time
from embedder.config.cli import run_job
signal.signal(signal.SIGINT, signal.default_int_handler)
def job(args):
    shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    print(shell.pid, shell.stdout.readline().strip(), flush=True)
    atexit.register(time.sleep, 60)
    raise KeyboardInterrupt
run_job(job)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        started = [int(pid) for pid in process.stdout.readline().split()]
        first = process.stderr.readline()
        process.send_signal(number)
        assert process.wait(20) == code
        assert (first, process.stderr.read()) == ("stopped; finished parts are kept, run again to go on\n", "")
    deadline = time.monotonic() + 5  # a killed process stays until its parent, or init, has waited for it
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_a_broken_network_connection_is_not_a_closed_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    def job(args: Sequence[str]) -> int:
        raise BrokenPipeError("of a socket")

    with pytest.raises(SystemExit) as stopped:
        run_job(job)
    assert stopped.value.code == 1
    assert capfd.readouterr().err.endswith("BrokenPipeError: of a socket\n")


def test_the_old_spelling_of_a_flag_works_with_a_warning_that_names_the_new_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    received: list[str] = []
    monkeypatch.setattr("embedder.config.cli.signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["maintain", "./my_table", "--dry_run", "--older_than_hours=2", "--embedding.max_tokens", "a_b"])
    with pytest.raises(SystemExit) as ended:
        run_job(lambda args: received.extend(args) or 0)  # type: ignore[func-returns-value]
    assert ended.value.code == 0
    assert received == ["./my_table", "--dry-run", "--older-than-hours=2", "--embedding.max_tokens", "a_b"]
    warnings = ["--dry_run: old spelling; use --dry-run", "--older_than_hours: old spelling; use --older-than-hours"]
    assert capsys.readouterr().err.splitlines() == warnings


def test_the_warning_is_json_if_the_log_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMBEDDER_LOG", "json")
    assert hyphenate_flags(["--dry_run"]) == ["--dry-run"]
    event = json.loads(capsys.readouterr().err)
    assert (event["level"], event["message"]) == ("warning", "--dry_run: old spelling; use --dry-run")
