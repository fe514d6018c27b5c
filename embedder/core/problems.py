"""Collect the problems of the settings, so that one error reports all."""

import errno
from collections.abc import Callable
from typing import TypeVar

from embedder.core.errors import CommitError, ConfigError, EmbedderError, StorageError, TableDamagedError
from embedder.core.retry import is_transient

T = TypeVar("T")

_DISK_FAULTS = {errno.EIO, errno.ESTALE, errno.ENOTCONN}
"""A disk or a mounted share that fails. s3fs raises EIO for anything unknown, but without a file's name."""


class Problems:
    """Problems of the settings, collected so that one ConfigError reports all."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def check(self, check: Callable[[], T]) -> T | None:
        """Return the result of a check, or keep its problem and return None.

        If the storage is unreachable, busy or broken, or the table is damaged, no other setting would help: the error is raised at once.
        """
        try:
            return check()
        except EmbedderError as error:
            cause = error.__cause__
            is_disk_fault = isinstance(cause, OSError) and cause.errno in _DISK_FAULTS and cause.filename is not None
            if isinstance(error, TableDamagedError):
                raise
            if (is_transient(error) or is_disk_fault) and not isinstance(error, ConfigError):
                if isinstance(error, CommitError):  # the table's log cannot be read
                    raise StorageError(str(error)) from error
                raise
            self.found.append(str(error))
            return None

    def raise_all(self) -> None:
        """Raise ConfigError if there is any problem."""
        if self.found:
            raise ConfigError("\n".join(self.found))
