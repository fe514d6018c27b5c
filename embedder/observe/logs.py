"""The log on stderr: text lines for a person, or a JSON object per line for a log collector (EMBEDDER_LOG=json)."""

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
from embedder.core.printable import printable, printable_lines

VARIABLE = "EMBEDDER_LOG"
FORMATS = ("text", "json")
FIELDS = "fields"
"""Key of an event's own fields in `extra`: its unit, its figures."""

logger = logging.getLogger("embedder")
_process_fields: ContextVar[Mapping[str, Any]] = ContextVar("process_fields", default=MappingProxyType({}))


def start_logging() -> None:
    """Send this project's log to stderr in the format of EMBEDDER_LOG."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if is_json() else TextFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def is_json() -> bool:
    """Return whether EMBEDDER_LOG is json; ConfigError if it is neither text nor json."""
    wanted = os.environ.get(VARIABLE) or FORMATS[0]
    if wanted not in FORMATS:
        raise ConfigError(f"{VARIABLE}={wanted!r}: choose {' or '.join(FORMATS)}")
    return wanted == "json"


def add_log_fields(**fields: Any) -> None:
    """Add fields, such as the run and the table, to every later line of this process."""
    _process_fields.set(MappingProxyType({**_process_fields.get(), **fields}))


def log_fields(**fields: Any) -> dict[str, Any]:
    """Return fields for one event: logger.info(…, extra=log_fields(task=…)); only JSON shows them."""
    return {FIELDS: fields}


def print_error(text: str, error: BaseException | None = None, level: int = logging.CRITICAL) -> None:
    """Print lines of text, or the traceback of an error, on stderr: as JSON if the log is JSON."""
    if os.environ.get(VARIABLE) == "json":
        trace = (type(error), error, error.__traceback__) if error else None
        print(JsonFormatter().format(logger.makeRecord(logger.name, level, "", 0, text, (), trace)), file=sys.stderr)
    elif error:
        print(printable_lines("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    else:
        print(printable_lines(text), file=sys.stderr)


@contextmanager
def held_stderr(unwanted: str) -> Iterator[None]:
    """Hold back everything that this process, native code included, writes to stderr; print the lines without `unwanted` at the end.

    The order may change: another thread's line may come before the held lines.
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


class TextFormatter(logging.Formatter):
    """Formats a record as text without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the time and the message on one line, and the traceback of an error."""
        return printable_lines(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line: a name that a document brings cannot begin another."""
        return printable(super().formatMessage(record))


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, message, the fields of the process and those of the event."""
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_process_fields.get(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)
