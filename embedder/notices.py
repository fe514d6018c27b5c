"""Word of how a run ended, for whoever is on call: JSON posted to EMBEDDER_NOTIFY_URL, of runs that failed or were stopped too.

A process that is killed cannot say so: whatever takes the word should also raise an alarm when none comes.
"""

import json
import logging
import os
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from embedder.errors import ConfigError
from embedder.retries import brief, patiently

VARIABLE = "EMBEDDER_NOTIFY_URL"
"""In the environment and nowhere else: such an address is a secret."""
ANSWER_SECONDS = 10

logger = logging.getLogger("embedder")


@dataclass(slots=True)
class Ending:
    """What a run has to say when it ends; it stays silent if there is no record, as after a dry run."""

    record: Mapping[str, Any] | None = None
    text: str = ""
    failed: bool = False


@contextmanager
def notified(job: str, args: Sequence[str]) -> Iterator[Ending]:
    """Send word when the block ends, in whichever way; a failure to send is logged and changes nothing."""
    url = os.environ.get(VARIABLE)
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"{VARIABLE}: not an http:// or https:// address; correct it or leave it out")
    ending = Ending()
    name = " ".join([job, *(each for each in args[:1] if not each.startswith("-"))])
    try:
        yield ending
    except BaseException as error:
        outcome = "failed" if isinstance(error, Exception) else "stopped"
        if url and getattr(error, "code", None) != 0:
            send(url, {"job": name, "outcome": outcome, "text": f"{name} {outcome}: {brief(error)}", "error": str(error)})
        raise
    if url and ending.record is not None:
        outcome = "failed" if ending.failed else "done"
        send(url, {"job": name, "outcome": outcome, "text": f"{name} {outcome}\n{ending.text}", "run": ending.record})


def send(url: str, word: Mapping[str, Any]) -> None:
    """Post; `text` is what chats show of it."""
    request = urllib.request.Request(url, json.dumps(word, default=str).encode(), {"Content-Type": "application/json"})

    def post() -> None:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            pass

    try:
        patiently(post, VARIABLE)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run is over and has its own outcome
        logger.error("%s: nobody was told how this run ended (%s)", VARIABLE, brief(error))
