"""Collect the problems of the settings, so that one error reports all."""

from collections.abc import Callable
from typing import TypeVar

from embedder.core.errors import ConfigError, EmbedderError, TableDamagedError
from embedder.core.retry import is_transient

T = TypeVar("T")


class Problems:
    """Problems of the settings, collected so that one ConfigError reports all."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def check(self, check: Callable[[], T]) -> T | None:
        """Return the result of a check, or keep its problem and return None.

        If the storage is unreachable or busy, or the table is damaged, no other setting would help: the error is raised at once.
        """
        try:
            return check()
        except EmbedderError as error:
            if isinstance(error, TableDamagedError) or (is_transient(error) and not isinstance(error, ConfigError)):
                raise
            self.found.append(str(error))
            return None

    def raise_all(self) -> None:
        """Raise ConfigError if there is any problem."""
        if self.found:
            raise ConfigError("\n".join(self.found))
