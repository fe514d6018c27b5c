"""Whoever is on call hears of every ending, and of nothing else."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from embedder.errors import ConfigError, StorageError
from embedder.notices import VARIABLE, notified
from embedder.settings import Terminated


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What was posted to an address that is busy at first."""
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
def test_a_run_that_ends_sends_its_record(heard: list[dict[str, Any]], failed: bool) -> None:
    with notified("jobs.embed", ["nightly.yaml", "--output.uri", "./out"]) as ending:
        ending.record, ending.text, ending.failed = {"version": 3}, "read 5 documents", failed
    outcome = "failed" if failed else "done"
    text = f"jobs.embed nightly.yaml {outcome}\nread 5 documents"
    assert heard == [{"job": "jobs.embed nightly.yaml", "outcome": outcome, "text": text, "run": {"version": 3}}]


@pytest.mark.parametrize(
    ("error", "outcome"), [(StorageError("s3://b: not found"), "failed"), (ConfigError("a"), "failed"), (Terminated(), "stopped")]
)
def test_a_run_that_breaks_off_says_why_and_still_breaks_off(heard: list[dict[str, Any]], error: BaseException, outcome: str) -> None:
    with pytest.raises(type(error)), notified("jobs.embed", ["--output.storage_options={token: x}"]):
        raise error
    (word,) = heard
    assert (word["job"], word["outcome"], word["error"]) == ("jobs.embed", outcome, str(error))


def test_what_is_no_run_is_not_told(heard: list[dict[str, Any]]) -> None:
    with notified("jobs.embed", []):
        pass
    with pytest.raises(SystemExit), notified("jobs.embed", ["--help"]):
        raise SystemExit(0)
    assert heard == []


def test_nobody_who_can_be_told_is_no_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9/secret-hook")
    with notified("jobs.embed", []) as ending:
        ending.record = {}
    assert "nobody was told" in caplog.text
    assert "secret-hook" not in caplog.text


def test_an_address_that_is_none_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "file:///etc/passwd")
    with pytest.raises(ConfigError, match=VARIABLE) as refused, notified("jobs.embed", []):
        pass
    assert "passwd" not in str(refused.value)
