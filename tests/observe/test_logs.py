"""The log: text lines for a person, or JSON objects for a log collector."""

import json
import logging
from collections.abc import Iterator, Sequence

import pytest

from embedder.config.cli import run_job
from embedder.core.errors import ConfigError, SourceError
from embedder.observe.logs import _process_fields, add_log_fields, log_fields, start_logging

logger = logging.getLogger("embedder")


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """Restore the process's log."""
    before, handlers, propagate, level = _process_fields.get(), logger.handlers[:], logger.propagate, logger.level
    yield
    _process_fields.set(before)
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


def fail(args: Sequence[str]) -> int:
    start_logging()
    add_log_fields(run_id="r1", table="s3://b/table")
    logger.info("half of\nit is %s", "there", extra=log_fields(unit="u1", tokens=12))
    raise SourceError('s3://b/x.parquet: "cannot" be read')


def test_each_line_is_an_object_with_run_table_and_unit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMBEDDER_LOG", "json")
    with pytest.raises(SystemExit) as stopped:
        run_job(fail)
    assert stopped.value.code == 1
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(event.pop("time").endswith("+00:00") for event in events)
    of_run = {"run_id": "r1", "table": "s3://b/table"}
    assert events == [
        {"level": "info", "message": "half of\nit is there", **of_run, "unit": "u1", "tokens": 12},
        {"level": "critical", "message": 's3://b/x.parquet: "cannot" be read', **of_run},
    ]


def test_an_unexpected_error_is_one_object_with_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMBEDDER_LOG", "json")
    with pytest.raises(SystemExit) as stopped:
        run_job(lambda _: 1 // 0)
    assert stopped.value.code == 1
    event = json.loads(capsys.readouterr().err)
    assert (event["level"], event["message"]) == ("critical", "ZeroDivisionError: integer division or modulo by zero")
    assert event["traceback"].startswith("Traceback (most recent call last)")


def test_the_default_is_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("EMBEDDER_LOG", raising=False)
    with pytest.raises(SystemExit):
        run_job(fail)
    assert capsys.readouterr().err.endswith(' half of\\nit is there\ns3://b/x.parquet: "cannot" be read\n')


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_LOG", "xml")
    with pytest.raises(ConfigError, match="EMBEDDER_LOG='xml': choose text or json"):
        start_logging()


def test_every_job_refuses_an_unknown_format(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMBEDDER_LOG", "xml")
    with pytest.raises(SystemExit) as stopped:
        run_job(lambda _: 0)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "EMBEDDER_LOG='xml': choose text or json\n"


def test_control_characters_are_escaped_as_text_and_exact_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(args: Sequence[str]) -> int:
        start_logging()
        logger.info("shard %s", "\x1b]0;owned\x07\x9b1A")
        raise SourceError("a\x1b[2K\r\nb: cannot be read")

    for kind in ("text", "json"):
        monkeypatch.setenv("EMBEDDER_LOG", kind)
        with pytest.raises(SystemExit):
            run_job(tell)
    first, last, *objects = capsys.readouterr().err.splitlines()
    assert first.endswith(r" shard \x1b]0;owned\x07\x9b1A")
    assert last == r"a\x1b[2K\r\nb: cannot be read"
    assert [json.loads(line)["message"] for line in objects] == ["shard \x1b]0;owned\x07\x9b1A", "a\x1b[2K\r\nb: cannot be read"]
    assert all(line.isascii() and line.isprintable() for line in objects)
