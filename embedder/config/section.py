"""What every section of the settings has in common, and the kinds of text that they share."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Protocol, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from embedder.core.redaction import has_password
from embedder.core.storage import Location

_NOT_OPENED = re.compile(r"[#?\\]|::|%[0-9A-Fa-f]{2}")

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, str | int) else value)
"""Of a list: a single value is a list of one, as a flag with one value gives it."""


def _without_password(uri: str) -> str:
    """Refuse a password where it would stand in every row, record and log."""
    if has_password(uri):
        raise ValueError("the address holds a password or key, which would stand in every row; credentials belong in the environment")
    return uri


def _openable(uri: str) -> str:
    """Refuse what the Delta writer reads otherwise than the rest of the world: it would write one folder and read another."""
    found = _NOT_OPENED.search(uri)
    if found:
        raise ValueError(f"{found[0]} in a table's address is read in different ways; choose a name without it")
    return uri


Address = Annotated[NonEmpty, AfterValidator(_without_password)]
TableAddress = Annotated[Address, AfterValidator(_openable)]


class Section(BaseModel):
    """What every section has in common: no unknown keys, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would take for 1 or 0."""
        kind = cls.model_fields[info.field_name or ""].annotation
        given = [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, bool)]
        if given and (takes(kind, int) or takes(kind, float)) and not takes(kind, bool):
            raise ValueError(f"{str(given[0]).lower()} is no number (YAML reads yes, no, on and off as true and false)")
        return value


class Addressed(Protocol):
    """A section that names a place."""

    @property
    def uri(self) -> str:
        """Folder, glob or file."""

    @property
    def storage_options(self) -> Mapping[str, Any]:
        """Options of the filesystem that holds it."""


class Located:
    """Adds `location` to a section with `uri` and `storage_options`."""

    @property
    def location(self: Addressed) -> Location:
        """The uri with the options of its filesystem."""
        return Location(self.uri, self.storage_options)


def takes(annotation: Any, kind: Any) -> bool:
    """Tell whether a setting's type has a kind of value in it: int | None has int."""
    return annotation is kind or any(takes(each, kind) for each in get_args(annotation))
