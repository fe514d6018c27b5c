"""Mask possible secrets before settings are recorded, printed or named in an error."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
SECRET_SECTIONS = frozenset({"storage_options"})
_OPEN = frozenset(
    {"endpoint_url", "region", "region_name", "project", "account_name", "profile", "addressing_style", "signature_version", "default_acl"}
)
"""Texts in storage options that are not secrets. Each filesystem names its secrets differently, so all other texts are masked."""
_SECRET = re.compile(r"secret|password|token|key|credential|sas", re.IGNORECASE)
_NAME = r"[\w.-]*(?:(?:passw(?:or)?d|pwd|secret|token|credential|signature|(?:api|access|private)[_-]?key)[\w.-]*|sig)"
_PASSWORD = re.compile(r"(://[^/@\s:]*:)[^/\s]+(?=@)")
_QUERY = re.compile(rf"([?&;]{_NAME}=)[^&#\s]+", re.IGNORECASE)
_WORD = re.compile(rf"((?:^|\s){_NAME}\s*=\s*)(?:'(?:\\.|[^'\\])*'?|(?:(?!\s+[\w.-]+\s*=).)+)", re.IGNORECASE | re.DOTALL)
"""In a libpq connection string, such as host=h password='not seen': up to the next name, in case the quotes are missing."""


def has_password(uri: str) -> bool:
    """Return whether an address holds a password, or a key or signature in its query."""
    return any(each.search(uri) for each in (_PASSWORD, _QUERY))


def mask_text(text: str) -> str:
    """Mask passwords, keys and signatures in addresses and connection strings."""
    for each in (_PASSWORD, _QUERY, _WORD):
        text = each.sub(rf"\1{MASK}", text)
    return text


def mask_secrets(values: Mapping[str, Any], inside: bool = False) -> dict[str, Any]:
    """Mask settings at any depth: storage options unless known to be harmless, and passwords and keys in any text."""
    return {name: mask_value(value, (name,), inside) for name, value in values.items()}


def mask_value(value: Any, path: Sequence[str], inside: bool = False) -> Any:
    """Mask the setting at a path."""
    inside = inside or not SECRET_SECTIONS.isdisjoint(path)
    if isinstance(value, Mapping):
        return mask_secrets(value, inside)
    if isinstance(value, list | tuple):
        return [mask_value(each, path, inside) for each in value]
    if isinstance(value, str):
        return MASK if inside and path[-1] not in _OPEN else mask_text(value)
    is_secret = inside and value is not None and not isinstance(value, bool) and _SECRET.search(path[-1])
    return MASK if is_secret else value
