"""Every end of a run is posted, and nothing else."""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from embedder.config.cli import Terminated, run_job
from embedder.core.errors import ConfigError, StorageError
from embedder.observe.notify import VARIABLE, check_address, notify_failed, notify_finished


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Return the messages posted to a server that is busy at first."""
    words: list[dict[str, Any]] = []
    answers = [503]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = answers.pop() if answers else 200
            if status == 200:
                words.append(json.loads(body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_port}/hook")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield words
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("failed", [False, True])
def test_a_finished_run_posts_its_record(heard: list[dict[str, Any]], failed: bool) -> None:
    notify_finished("jobs.embed", ["nightly.yaml", "--output.uri", "./out"], {"version": 3}, "read 5 documents", failed)
    outcome = "failed" if failed else "done"
    text = f"jobs.embed nightly.yaml {outcome}\nread 5 documents"
    assert heard == [{"job": "jobs.embed nightly.yaml", "outcome": outcome, "text": text, "run": {"version": 3}}]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Return a function that runs a job which raises, as a process would."""
    monkeypatch.setattr("embedder.config.cli.signal.signal", lambda *_: None)
    monkeypatch.setattr("embedder.config.cli.kill_descendants", lambda: None)
    monkeypatch.setattr("embedder.config.cli.os._exit", sys.exit)
    monkeypatch.setattr("sys.argv", ["embed.py", "--output.storage_options={token: x}"])

    def run(error: BaseException) -> int:
        def job(args: object) -> int:
            raise error

        with pytest.raises(SystemExit) as stopped:
            run_job(job, partial(notify_failed, "jobs.embed"))
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return run


@pytest.mark.parametrize(("error", "code"), [(StorageError("s3://b: not found"), 1), (ConfigError("a"), 2), (ZeroDivisionError("b"), 1)])
def test_a_failed_run_posts_its_error_and_keeps_its_exit_code(
    heard: list[dict[str, Any]], run: Callable[[BaseException], int], error: BaseException, code: int
) -> None:
    assert run(error) == code
    (word,) = heard
    assert (word["job"], word["outcome"], word["error"]) == ("jobs.embed", "failed", str(error))


def test_the_error_is_printed_before_it_is_posted(
    run: Callable[[BaseException], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    monkeypatch.setattr("embedder.observe.notify.send", lambda *_: shown.append(capsys.readouterr().err))
    run(ConfigError("wiki.yaml:3: wrong"))
    assert shown == ["wiki.yaml:3: wrong\n"]


def test_a_stopped_run_posts_once_without_retries(heard: list[dict[str, Any]], run: Callable[[BaseException], int], caplog: Any) -> None:
    assert run(Terminated()) == 143
    assert heard == []  # the server was busy, and a stopped run does not retry
    assert "notification failed (HTTP 503)" in caplog.text
    assert run(Terminated()) == 143
    assert [word["outcome"] for word in heard] == ["stopped"]


def test_a_plain_exit_is_not_posted(heard: list[dict[str, Any]], run: Callable[[BaseException], int]) -> None:
    assert run(SystemExit(0)) == 0
    assert heard == []


def test_a_silent_server_does_not_delay_a_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("embedder.observe.notify.SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{silent.getsockname()[1]}/secret-hook")
        for error in (StorageError("a"), Terminated()):
            started = time.monotonic()
            notify_failed("jobs.embed", [], error)
            assert time.monotonic() - started < 5
    assert caplog.text.count("notification failed") == 2
    assert "secret-hook" not in caplog.text


def test_a_refused_connection_is_retried(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "embedder")
    monkeypatch.setattr("embedder.observe.notify.SECONDS", 1.0)
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9/secret-hook")
    notify_finished("jobs.embed", [], {}, "", failed=False)
    assert "trying again" in caplog.text
    assert "notification failed" in caplog.text
    assert "secret-hook" not in caplog.text


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/SECR ET", "http://127.0.0.1:SECRET/", "http://[SECRET/", "http://h/SECR\u0118T"])
def test_an_address_that_cannot_be_used_is_not_printed(url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "embedder")
    monkeypatch.setenv(VARIABLE, url)
    notify_finished("jobs.embed", [], {}, "", failed=False)
    assert "notification failed" in caplog.text
    assert "SECR" not in caplog.text


def test_a_wrong_address_is_refused_without_printing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    check_address()
    monkeypatch.setenv(VARIABLE, "file:///etc/passwd")
    with pytest.raises(ConfigError, match=VARIABLE) as refused:
        check_address()
    assert "passwd" not in str(refused.value)
    notify_finished("jobs.embed", [], {}, "", failed=False)
