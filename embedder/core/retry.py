"""Which failures of a store pass by themselves, and how long and how often a call is repeated for them."""

import itertools
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long a store that is busy or unreachable is asked again, in `patiently`."""
_FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 20.0

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_BUSY_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
"""409 is S3's answer when a conditional write meets another one in flight: the next try is told which of them won."""
_DAMAGED_ON_THE_WAY = {"RequestTimeout", "RequestTimeoutException", "BadDigest", "XAmzContentSHA256Mismatch"}
"""S3's codes for a body that stalled or did not come whole: of status 400, as what is refused for good."""
_BROKEN = {
    "ConnectionError", "TimeoutError", "HTTPClientError", "IncompleteReadError", "ResponseParserError", "ClientConnectionError",
    "ClientPayloadError", "ServiceRequestError", "ServiceResponseError", "APIConnectionError",
}  # fmt: skip
"""By name, of builtins, botocore, aiohttp, requests, azure and openai: not every machine has the package of every store."""
_BROKEN_DELTA = ("HTTP error", "max_retries")
"""What delta-rs says where a connection broke, or where its own retries ended; its exceptions tell no more."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

logger = logging.getLogger("embedder")


def with_retries(call: Callable[[], T], uri: str, patience_seconds: float | None = None) -> T:
    """Call, and again after pauses that grow, while the store is busy or the connection breaks, for PATIENCE_SECONDS at most.

    The call must be safe to repeat although its first time may have taken effect. A server that says when to come again is obeyed.
    """
    deadline = time.monotonic() + (PATIENCE_SECONDS if patience_seconds is None else patience_seconds)
    for attempt in itertools.count():
        pause = random.uniform(0.5, 1.0) * min(_FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
        try:
            return call()
        except Exception as error:
            pause = max(pause, asked_pause(error))
            if not is_transient(error) or time.monotonic() + pause > deadline:
                raise
            logger.log(logging.WARNING if attempt > 2 else logging.DEBUG, "%s: %s; trying again in %.0f s", uri, one_line(error), pause)
        time.sleep(pause)
    raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Tell a store that is busy, or a connection that broke, from a refusal that would be the same the next time."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _FINAL):
            return False
        if _code_of(cause) in _DAMAGED_ON_THE_WAY:
            return True
        status = _status_of(cause)
        if status is not None:
            return status in _BUSY_STATUS
        if any(kind.__name__ in _BROKEN for kind in type(cause).__mro__) or any(words in str(cause) for words in _BROKEN_DELTA):
            return True
        cause = cause.__cause__
    return False


def _code_of(error: BaseException) -> str | None:
    """Find S3's own code in botocore's response, which s3fs keeps as the cause of what it translates."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, Mapping) else None


def _status_of(error: BaseException) -> int | None:
    """Find the HTTP status: in botocore's response, or as aiohttp, azure, gcsfs and google name it."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = next((getattr(error, name) for name in ("status", "status_code", "code") if hasattr(error, name)), None)
    return int(status) if isinstance(status, int | str) and str(status).isdecimal() else None


def asked_pause(error: BaseException) -> float:
    """Give the seconds that a server asks for in a header, as openai's errors carry it; 0 if it asks for none."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(ValueError):
            return max(0.0, float(headers.get(name, "")) * unit)
    return 0.0


def one_line(error: BaseException) -> str:
    """Give an error's text in one line of bounded length, without a terminal's colours."""
    text = " ".join(_COLOUR.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "…"
