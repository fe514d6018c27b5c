"""Word of how a run ended, for whoever is on call: JSON posted to EMBEDDER_NOTIFY_URL, of runs that failed or were stopped too.

A process that is killed cannot say so: whatever takes the word should also raise an alarm when none comes.
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
"""In the environment and nowhere else: such an address is a secret."""
SECONDS = 10.0
"""For all tries: a pod that was told to end is killed after 30. Whoever was stopped has one."""

logger = logging.getLogger("embedder")


def check_address() -> None:
    """Refuse what is no address, before a run."""
    url = os.environ.get(VARIABLE)
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"{VARIABLE}: not an http:// or https:// address; correct it or leave it out")


def notify_finished(job: str, args: Sequence[str], record: Mapping[str, Any], text: str, failed: bool) -> None:
    """Send word of a run that came to its end."""
    name, outcome = _name(job, args), "failed" if failed else "done"
    send({"job": name, "outcome": outcome, "text": f"{name} {outcome}\n{text}", "run": record}, SECONDS)


def notify_failed(job: str, args: Sequence[str], error: BaseException) -> None:
    """Send word of what ended a run."""
    name, failed = _name(job, args), isinstance(error, Exception)
    outcome = "failed" if failed else "stopped"
    send({"job": name, "outcome": outcome, "text": f"{name} {outcome}: {one_line(error)}", "error": str(error)}, SECONDS if failed else 0)


def _name(job: str, args: Sequence[str]) -> str:
    return " ".join([job, *(each for each in args[:1] if not each.startswith("-"))])


def send(word: Mapping[str, Any], patience_seconds: float) -> None:
    """Post where there is an address; `text` is what chats show of it. A failure to send is logged and changes nothing."""
    url, problems = os.environ.get(VARIABLE, ""), [f"no answer in {SECONDS:g} s"]
    if not url.startswith(("http://", "https://")):
        return

    def post() -> None:
        request = urllib.request.Request(url, json.dumps(word, default=str).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):
                pass
        except urllib.error.URLError as error:
            # that a connection was refused, and may not be the next time, is only told by what is inside
            raise error.reason if isinstance(error.reason, Exception) else error from None

    def post_patiently() -> None:
        try:
            with_retries(post, VARIABLE, patience_seconds)
            problems.clear()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run is over and has its own outcome
            # by its kind alone, since its text may hold the address
            problems[:] = [f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__]

    # a thread, since neither the look-up of a name nor an answer that trickles in keeps to a timeout
    thread = threading.Thread(target=post_patiently, daemon=True)
    thread.start()
    thread.join(SECONDS)
    for problem in problems:
        logger.error("%s: nobody was told how this run ended (%s)", VARIABLE, problem)
