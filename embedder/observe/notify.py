"""Post the result of a run, as JSON, to EMBEDDER_NOTIFY_URL, also if it failed or was stopped.

A killed process cannot post: the receiver should also raise an alarm if no post comes.
"""

import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from embedder.core.errors import ConfigError
from embedder.core.retry import one_line, with_retries

VARIABLE = "EMBEDDER_NOTIFY_URL"
"""Set only in the environment, since such an address is a secret."""
SECONDS = 10.0
"""For all tries: a terminated pod is killed after 30. A stopped run tries once."""

logger = logging.getLogger("embedder")


def check_address() -> None:
    """Raise ConfigError if the variable is set and not an http address."""
    url = os.environ.get(VARIABLE)
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"{VARIABLE}: not an http:// or https:// address; correct it or leave it out")


def notify_finished(job: str, args: Sequence[str], record: Mapping[str, Any], text: str, failed: bool) -> None:
    """Post the record of a run that ran to its end."""
    name, outcome = _name(job, args), "failed" if failed else "done"
    send({"job": name, "outcome": outcome, "text": f"{name} {outcome}\n{text}", "run": record}, SECONDS)


def notify_failed(job: str, args: Sequence[str], error: BaseException) -> None:
    """Post the error that ended a run."""
    name, failed = _name(job, args), isinstance(error, Exception)
    outcome = "failed" if failed else "stopped"
    send({"job": name, "outcome": outcome, "text": f"{name} {outcome}: {one_line(error)}", "error": str(error)}, SECONDS if failed else 0)


def _name(job: str, args: Sequence[str]) -> str:
    return " ".join([job, *(each for each in args[:1] if not each.startswith("-"))])


def send(message: Mapping[str, Any], patience_seconds: float) -> None:
    """Post a message if an address is set; chats show its `text`. A failure to post is logged and changes nothing else."""
    url, problems = os.environ.get(VARIABLE, ""), [f"no answer in {SECONDS:g} s"]
    if not url.startswith(("http://", "https://")):
        return

    def post() -> None:
        request = urllib.request.Request(url, json.dumps(message, default=str).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):
                pass
        except urllib.error.URLError as error:
            # the reason inside decides whether a retry may help, such as a refused connection
            raise error.reason if isinstance(error.reason, Exception) else error from None

    def post_with_retries() -> None:
        try:
            with_retries(post, VARIABLE, patience_seconds)
            problems.clear()
        except Exception as error:  # noqa: BLE001 - the run is over and keeps its own outcome
            # only the class, since the text may hold the address
            problems[:] = [f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__]

    # a thread, since neither a name lookup nor a response that trickles in obeys the timeout
    thread = threading.Thread(target=post_with_retries, daemon=True)
    thread.start()
    thread.join(SECONDS)
    for problem in problems:
        logger.error("%s: notification failed (%s)", VARIABLE, problem)
