"""Transient errors are retried, within bounds; permanent ones are raised at once."""

import itertools
from types import SimpleNamespace

import pytest
import s3fs.errors
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from embedder.core import retry as retries
from embedder.core.retry import is_transient, one_line, with_retries


def answer(status: int, code: str = "Code") -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def from_s3fs(error: ClientError) -> Exception:
    translated: Exception = s3fs.errors.translate_boto_error(error)
    return translated


class LocalEntryNotFoundError(FileNotFoundError):
    """Named and based as huggingface_hub's."""


class TransportError(Exception):
    """Named as httpx's."""


class HubError(Exception):
    """Carries the response as httpx's and the hub's do."""

    response = SimpleNamespace(status_code=503)


class AzureLikeError(Exception):  # as azure.core names it; gcsfs and google say `code`, aiohttp `status`
    status_code = 503


@pytest.mark.parametrize(
    "error",
    [
        answer(503, "SlowDown"), answer(429), answer(500), answer(409, "ConditionalRequestConflict"), ConnectionResetError("reset"),
        TimeoutError(), EndpointConnectionError(endpoint_url="http://x"), ReadTimeoutError(endpoint_url="http://x"), AzureLikeError(),
        answer(400, "RequestTimeout"), answer(400, "BadDigest"), answer(400, "XAmzContentSHA256Mismatch"),
        *(from_s3fs(answer(400, code)) for code in ("RequestTimeout", "RequestTimeoutException", "BadDigest", "XAmzContentSHA256Mismatch")),
        caused(OSError(5, "busy"), answer(429)),
        caused(LocalEntryNotFoundError("hub"), TransportError()), HubError(),
        OSError("Generic S3 error\n Error performing PUT in 1ms - HTTP error"),
    ],
    ids=repr,
)  # fmt: skip
def test_busy_stores_and_broken_connections_are_transient(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        answer(403, "AccessDenied"), answer(404, "NoSuchBucket"), answer(301, "PermanentRedirect"), answer(400), answer(412),
        from_s3fs(answer(400, "InvalidDigest")),
        caused(PermissionError("no"), answer(503)),
        LocalEntryNotFoundError("offline"), FileNotFoundError("gone"), NoCredentialsError(), OSError(28, "No space left"),
        ValueError("a bug"), OSError("Generic S3 error - Server returned non-2xx status code: 403 Forbidden"),
    ],
    ids=repr,
)  # fmt: skip
def test_refusals_are_permanent(error: Exception) -> None:
    assert not is_transient(error)


def test_a_call_is_retried_after_growing_pauses_until_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(retries.time, "sleep", sleep)
    monkeypatch.setattr(retries.time, "monotonic", lambda: clock[0])
    with pytest.raises(TimeoutError):
        with_retries(lambda: (_ for _ in ()).throw(TimeoutError()), "s3://b/k")
    assert retries.PATIENCE_SECONDS - retries.LONGEST_PAUSE_SECONDS <= sum(pauses) <= retries.PATIENCE_SECONDS
    for attempt, pause in enumerate(pauses):
        longest = min(0.5 * 2**attempt, retries.LONGEST_PAUSE_SECONDS)
        assert longest / 2 <= pause <= longest, "random, so that workers do not all retry at once"
    assert len(set(pauses)) == len(pauses)


def test_a_call_that_succeeds_in_the_end_returns_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    calls = itertools.count()

    def call() -> str:
        if next(calls) < 4:
            raise answer(503)
        return "done"

    assert with_retries(call, "s3://b/k") == "done"
    assert next(calls) == 5


def test_a_refusal_is_raised_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: pytest.fail("waited for a refusal"))
    with pytest.raises(ClientError):
        with_retries(lambda: (_ for _ in ()).throw(answer(403)), "s3://b/k")


def test_an_error_is_one_line_without_colors() -> None:
    assert one_line(OSError("Generic S3 error\n   \x1b[31m↳\x1b[0m HTTP error")) == "Generic S3 error ↳ HTTP error"
    assert one_line(ValueError()) == "ValueError"
