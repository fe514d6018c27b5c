"""Run a job from the command line: signals, exit codes, and what is printed when it ends."""

import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from embedder.core.errors import ConfigError, EmbedderError
from embedder.observe.logs import is_json, print_error
from embedder.observe.process import freeze_gc


def notify_nobody(args: Sequence[str], error: BaseException) -> None:
    """Most jobs have nobody to tell why they end but the person who reads stderr."""


def run_job(job: Callable[[Sequence[str]], int], tell: Callable[[Sequence[str], BaseException], None] = notify_nobody) -> None:
    """Run a job's main and exit: 0 done, 1 failed, 2 wrong config, 130 interrupted, 141 no reader, 143 terminated.

    What ends it is shown on stderr, without a traceback for what we know, before others are told.
    """
    signal.signal(signal.SIGTERM, _stop)
    args = sys.argv[1:]
    try:
        is_json()  # what is no format is refused by every job, also by those that log nothing
        code = job(args)
    except BaseException as error:
        if isinstance(error, SystemExit) and not _is_terminated(error):
            raise
        code = _show(error)
        with suppress(KeyboardInterrupt):
            tell(args, error)
        if _is_terminated(error):
            # at once: Ray, if it was only starting, would abort on the way out; its processes end with this one
            sys.stderr.flush()
            os._exit(code)
    freeze_gc()
    sys.exit(code)


def _show(error: BaseException) -> int:
    """Say on stderr what ends a job, and give its exit code."""
    if isinstance(error, EmbedderError):
        print_error(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    if isinstance(error, BrokenPipeError) and has_no_reader():  # and not a connection's
        # whoever read has seen enough, as `| head` has; what is still held for them is not written on the way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if isinstance(error, Exception):
        print_error(f"{type(error).__name__}: {error}", error)
        return 1
    print_error("stopped; finished parts are kept, run again to go on")
    return 143 if _is_terminated(error) else 130


def _is_terminated(error: BaseException) -> bool:
    """Tell SIGTERM from other ends; while it starts, Ray answers it itself, by exiting with the signal's number."""
    return isinstance(error, Terminated) or (isinstance(error, SystemExit) and error.code == signal.SIGTERM)


def has_no_reader() -> bool:
    """Tell whether the other end of stdout's pipe is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class Terminated(KeyboardInterrupt):
    """SIGTERM: the platform takes the machine away."""


def _stop(*_: object) -> None:
    raise Terminated
