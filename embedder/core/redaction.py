"""Secrets leave no trace: what may be one is masked before settings are recorded, printed or named in an error."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
SECRET_SECTIONS = frozenset({"storage_options"})
_OPEN = frozenset(
    {"endpoint_url", "region", "region_name", "project", "account_name", "profile", "addressing_style", "signature_version", "default_acl"}
)
"""Texts in storage options that are no secrets; each filesystem names its secrets in its own way, so all others are taken for one."""
_SECRET = re.compile(r"secret|password|token|key|credential|sas", re.IGNORECASE)
_NAME = r"[\w.-]*(?:(?:passw(?:or)?d|pwd|secret|token|credential|signature|(?:api|access|private)[_-]?key)[\w.-]*|sig)"
_PASSWORD = re.compile(r"(://[^/@\s:]*:)[^/\s]+(?=@)")
_QUERY = re.compile(rf"([?&;]{_NAME}=)[^&#\s]+", re.IGNORECASE)
_WORD = re.compile(rf"((?:^|\s){_NAME}\s*=\s*)(?:'(?:\\.|[^'\\])*'?|(?:(?!\s+[\w.-]+\s*=).)+)", re.IGNORECASE | re.DOTALL)
"""As in a connection string of libpq, host=h password='not seen': up to the next name, for who forgets the quotes."""


def has_password(uri: str) -> bool:
    """Say whether an address names a user with a password, or a key or signature in its query."""
    return any(each.search(uri) for each in (_PASSWORD, _QUERY))


def mask_text(text: str) -> str:
    """Mask passwords, keys and signatures in addresses and connection strings."""
    for each in (_PASSWORD, _QUERY, _WORD):
        text = each.sub(rf"\1{MASK}", text)
    return text


def mask_secrets(values: Mapping[str, Any], inside: bool = False) -> dict[str, Any]:
    """Mask settings at any depth: storage options but for what is known to be none, and passwords and keys in texts anywhere."""
    return {name: mask_value(value, (name,), inside) for name, value in values.items()}


def mask_value(value: Any, path: Sequence[str], inside: bool = False) -> Any:
    """Mask one setting, which stands at a path."""
    inside = inside or not SECRET_SECTIONS.isdisjoint(path)
    if isinstance(value, Mapping):
        return mask_secrets(value, inside)
    if isinstance(value, list | tuple):
        return [mask_value(each, path, inside) for each in value]
    is_text = isinstance(value, str)
    if inside and value is not None and ((is_text and path[-1] not in _OPEN) or (_SECRET.search(path[-1]) and not isinstance(value, bool))):
        return MASK
    return mask_text(value) if is_text else value
