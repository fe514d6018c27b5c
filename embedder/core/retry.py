"""Retry calls whose failure is transient: a store that is busy, or a connection that broke."""

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
"""How long `with_retries` retries a store that is busy or unreachable."""
_FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 20.0

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_OFFLINE = "OfflineModeIsEnabled"
"""The hub's client raises it, a ConnectionError, if HF_HUB_OFFLINE is set."""
_COULD_NOT_ASK = "LocalEntryNotFoundError"
"""The hub's client raises it, a FileNotFoundError, if it reached no server: the cause decides."""
_BUSY_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
"""S3 answers 409 when a conditional write meets another one in flight; the retry learns which of them won."""
_DAMAGED_IN_TRANSIT = {"RequestTimeout", "RequestTimeoutException", "BadDigest", "XAmzContentSHA256Mismatch"}
"""S3's codes for a body that stalled or arrived incomplete. Their status is 400, like that of permanent refusals."""
_BROKEN = {
    "ConnectionError", "TimeoutError", "HTTPClientError", "IncompleteReadError", "ResponseParserError", "ClientConnectionError",
    "ClientPayloadError", "ServiceRequestError", "ServiceResponseError", "APIConnectionError", "TransportError",
}  # fmt: skip
"""Class names of builtins, botocore, aiohttp, requests, azure, openai and httpx: not every machine has the package of every store."""
_BROKEN_DELTA = ("HTTP error", "max_retries")
"""Text in delta-rs errors for a broken connection or exhausted retries; its exception classes do not distinguish them."""
_COLOR = re.compile(r"\x1b\[[0-9;]*m")

logger = logging.getLogger("embedder")


def with_retries(call: Callable[[], T], uri: str, patience_seconds: float | None = None) -> T:
    """Return the call's result, retrying transient errors after growing, random pauses for at most PATIENCE_SECONDS.

    The call must be safe to repeat although its first attempt may have taken effect. A server's Retry-After is obeyed.
    """
    deadline = time.monotonic() + (PATIENCE_SECONDS if patience_seconds is None else patience_seconds)
    for attempt in itertools.count():
        pause = random.uniform(0.5, 1.0) * min(_FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
        try:
            return call()
        except Exception as error:
            pause = max(pause, requested_pause(error))
            if not is_transient(error) or time.monotonic() + pause > deadline:
                raise
            logger.log(logging.WARNING if attempt > 2 else logging.DEBUG, "%s: %s; trying again in %.0f s", uri, one_line(error), pause)
        time.sleep(pause)
    raise AssertionError


def fetch_whole(fetch: Callable[[int, int], bytes], size: int, uri: str) -> Callable[[int, int], bytes]:
    """Return a fetcher of byte ranges that fetches a truncated range again."""

    def fetch_once(start: int, stop: int) -> bytes:
        data = fetch(start, stop)
        if len(data) < min(stop, size) - start:
            raise ConnectionError(f"received {len(data)} bytes of {start} to {min(stop, size)}")
        return data

    return lambda start, stop: with_retries(lambda: fetch_once(start, stop), uri)


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed: the store is busy or the connection broke."""
    cause: BaseException | None = error
    while cause is not None:
        name = type(cause).__name__
        if name == _OFFLINE or (isinstance(cause, _FINAL) and name != _COULD_NOT_ASK):
            return False
        if _code_of(cause) in _DAMAGED_IN_TRANSIT:
            return True
        status = _status_of(cause)
        if status is not None:
            return status in _BUSY_STATUS
        if any(kind.__name__ in _BROKEN for kind in type(cause).__mro__) or any(words in str(cause) for words in _BROKEN_DELTA):
            return True
        cause = cause.__cause__
    return False


def _code_of(error: BaseException) -> str | None:
    """Return S3's error code from botocore's response, which s3fs keeps as the cause of its own errors."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, Mapping) else None


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status: from botocore's or httpx's response, or from the attribute that aiohttp, azure, gcsfs and google use."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        named = ((each, name) for each in (error, response) for name in ("status", "status_code", "code"))
        status = next((getattr(each, name) for each, name in named if hasattr(each, name)), None)
    return int(status) if isinstance(status, int | str) and str(status).isdecimal() else None


def requested_pause(error: BaseException) -> float:
    """Return the seconds in a retry-after header, which openai's errors carry; 0 without one."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(ValueError):
            return max(0.0, float(headers.get(name, "")) * unit)
    return 0.0


def one_line(error: BaseException) -> str:
    """Return an error's text as one line of at most 300 characters, without terminal colors."""
    text = " ".join(_COLOR.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "…"
