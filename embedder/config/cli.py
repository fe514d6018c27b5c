"""Run a job from the command line: flag spelling, signals, exit codes, and the last line on stderr."""

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence

from embedder.core.errors import ConfigError, EmbedderError
from embedder.core.printable import printable
from embedder.observe.logs import is_json, print_error
from embedder.observe.process import freeze_gc, kill_descendants


class Terminated(KeyboardInterrupt):
    """SIGTERM: the platform takes the machine away."""


def run_job(
    job: Callable[[Sequence[str]], int], notify: Callable[[Sequence[str], BaseException], None] = lambda _args, _error: None
) -> None:
    """Run a job's main and exit: 0 done, 1 failed, 2 wrong config, 130 interrupted, 141 no reader, 143 terminated.

    An error is printed on stderr, without a traceback if it is ours, before `notify` is called with it.
    """
    signal.signal(signal.SIGTERM, _terminate)
    args: Sequence[str] = sys.argv[1:]
    try:
        is_json()  # jobs that log nothing refuse a wrong format too
        args = hyphenate_flags(args)
        code = job(args)
    except BaseException as error:
        if isinstance(error, SystemExit) and not _is_terminated(error):
            raise
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end_now)
        code = _print_end(error)
        notify(args, error)
        if _is_terminated(error):
            _end_now(signal.SIGTERM)  # if Ray is still starting, it would abort on the way out
    freeze_gc()
    sys.exit(code)


def hyphenate_flags(args: Sequence[str]) -> list[str]:
    """Return arguments with flags such as --dry_run spelled --dry-run, and warn of each; settings, which have dots, keep underscores."""
    spelled = []
    for arg in args:
        name, equals, value = arg.partition("=")
        if name.startswith("--") and "_" in name and "." not in name:
            name = name.replace("_", "-")
            print_error(f"{arg.partition('=')[0]}: old spelling; use {name}", level=logging.WARNING)
        spelled.append(name + equals + value)
    return spelled


def _print_end(error: BaseException) -> int:
    """Print the error that ends a job on stderr, and return its exit code."""
    if isinstance(error, EmbedderError):
        print_error(str(error) if isinstance(error, ConfigError) or is_json() else printable(error))
        return 2 if isinstance(error, ConfigError) else 1
    if isinstance(error, BrokenPipeError) and _has_no_reader():  # not a network connection
        # a reader such as `| head` is done; without this, Python would fail to flush the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if isinstance(error, Exception):
        print_error(f"{type(error).__name__}: {error}", error)
        return 1
    print_error("stopped; finished parts are kept, run again to go on")
    return 143 if _is_terminated(error) else 130


def _is_terminated(error: BaseException) -> bool:
    """Return whether SIGTERM ended the job; Ray, while it starts, handles the signal by exiting with its number."""
    return isinstance(error, Terminated) or (isinstance(error, SystemExit) and error.code == signal.SIGTERM)


def _has_no_reader() -> bool:
    """Return whether the other end of stdout's pipe is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _end_now(number: int, *_: object) -> None:
    """End at once, without the handlers of exit, which take seconds: after SIGTERM, or a second Ctrl-C. Ray's processes end too."""
    kill_descendants()
    sys.stderr.flush()
    os._exit(128 + number)


def _terminate(*_: object) -> None:
    raise Terminated
