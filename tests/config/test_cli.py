"""Every job has the same exit codes and the same spelling of flags."""

import json
import subprocess
import sys
from collections.abc import Sequence

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
