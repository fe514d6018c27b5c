"""Addresses in settings: what an object is named by, without what must not be written down or cannot be opened."""

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from embedder.masking import has_password

_NOT_OPENED = re.compile(r"[#?\\]|::|%[0-9A-Fa-f]{2}")

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


def _without_password(uri: str) -> str:
    """Refuse a password where it would stand in every row, record and log."""
    if has_password(uri):
        raise ValueError("the address holds a password, which would stand in every row; credentials belong in the environment")
    return uri


def _openable(uri: str) -> str:
    """Refuse what the Delta writer reads otherwise than the rest of the world: it would write one folder and read another."""
    found = _NOT_OPENED.search(uri)
    if found:
        raise ValueError(f"{found[0]} in a table's address is read in different ways; choose a name without it")
    return uri


Address = Annotated[NonEmpty, AfterValidator(_without_password)]
TableAddress = Annotated[Address, AfterValidator(_openable)]
