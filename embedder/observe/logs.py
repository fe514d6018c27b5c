"""The log on stderr: a line an event for a person, or a JSON object a line for whatever collects logs (EMBEDDER_LOG=json)."""

import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from embedder.core.errors import ConfigError

VARIABLE = "EMBEDDER_LOG"
FORMATS = ("text", "json")
FIELDS = "fields"
"""Key of `extra` under which an event's own fields come: the unit it is about, its figures."""

logger = logging.getLogger("embedder")
_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default=MappingProxyType({}))


def start_logging() -> None:
    """Send this project's log to stderr, as EMBEDDER_LOG says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if is_json() else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def is_json() -> bool:
    """Read the wanted format from the environment."""
    wanted = os.environ.get(VARIABLE) or FORMATS[0]
    if wanted not in FORMATS:
        raise ConfigError(f"{VARIABLE}={wanted!r}: choose {' or '.join(FORMATS)}")
    return wanted == "json"


def add_log_fields(**fields: Any) -> None:
    """Add to every later line of this process what it is about: the run, the table."""
    _about.set(MappingProxyType({**_about.get(), **fields}))


def log_fields(**fields: Any) -> dict[str, Any]:
    """Give an event fields of its own: logger.info(…, extra=about(task=…)); only JSON shows them."""
    return {FIELDS: fields}


def print_error(text: str, error: BaseException | None = None) -> None:
    """Say why a job ends, on stderr: as it is, or the traceback of an error, or as JSON like every other line there."""
    if os.environ.get(VARIABLE) == "json":
        trace = (type(error), error, error.__traceback__) if error else None
        print(JsonFormatter().format(logger.makeRecord(logger.name, logging.CRITICAL, "", 0, text, (), trace)), file=sys.stderr)
    elif error:
        traceback.print_exception(error)
    else:
        print(text, file=sys.stderr)


@contextmanager
def held_stderr(unwanted: str) -> Iterator[None]:
    """Hold back what anything in this process, native code too, writes to stderr; lines without `unwanted` come out afterwards.

    Nothing else is lost, but what another thread writes in the moment they come out may stand before them.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            sys.stderr.writelines(line for line in held.read().decode(errors="replace").splitlines(True) if unwanted not in line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Lay out time, level, message, what the run is, and the event's own fields."""
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_about.get(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False, default=str)
