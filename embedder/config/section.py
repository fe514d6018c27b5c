"""The base of all sections of the settings, and the types they share."""

import re
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from embedder.core.redaction import has_password
from embedder.core.storage import Location

_AMBIGUOUS = re.compile(r"[#?\\]|::|%[0-9A-Fa-f]{2}")

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, str | int) else value)
"""For a list: a single value, such as a flag's, becomes a list of one."""


def _without_password(uri: str) -> str:
    """Refuse a password, which would be stored in every row, record and log."""
    if has_password(uri):
        raise ValueError("the address holds a password or key, which would stand in every row; credentials belong in the environment")
    return uri


def _unambiguous(uri: str) -> str:
    """Refuse characters that the Delta writer and fsspec decode differently: they would use two folders; and the hub."""
    if uri.startswith("hf://"):
        raise ValueError("no Delta table can be on the Hugging Face hub; choose a local path, s3://, gs:// or az://")
    if found := is_ambiguous(uri):
        raise ValueError(f"{found} in a table's address is read in different ways; choose a name without it")
    return uri


def is_ambiguous(uri: str) -> str | None:
    """Return the characters of a table's address that delta-rs and fsspec decode differently; None if there are none."""
    found = _AMBIGUOUS.search(uri)
    return found[0] if found else None


Address = Annotated[NonEmpty, AfterValidator(_without_password)]
TableAddress = Annotated[Address, AfterValidator(_unambiguous)]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false, which pydantic would convert to 1 and 0."""
        kind = cls.model_fields[info.field_name or ""].annotation
        given = [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, bool)]
        if given and (takes(kind, int) or takes(kind, float)) and not takes(kind, bool):
            raise ValueError(f"{str(given[0]).lower()} is not a number (YAML reads yes, no, on and off as true and false)")
        return value


class Located(Section):
    """A section with a uri and the options of its filesystem."""

    uri: NonEmpty
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem, e.g. {endpoint_url: …, anon: true}. Credentials belong in the environment."""

    @property
    def location(self) -> Location:
        """The uri with the options of its filesystem."""
        return Location(self.uri, self.storage_options)


def takes(annotation: Any, kind: Any) -> bool:
    """Return whether a setting's type includes a kind of value: int | None includes int."""
    return annotation is kind or any(takes(each, kind) for each in get_args(annotation))


def is_text(annotation: Any) -> bool:
    """Return whether a setting takes text and nothing else but null."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return is_text(args[0])
    return annotation is str or (origin in (Union, UnionType) and all(each is NoneType or is_text(each) for each in args))
