"""A chunk's template, such as "{title|none}\\n{headings}\\n{chunk}": text and columns of the document around every chunk.

`{name|default}` is a column with the text that replaces an empty one, `{{` and `}}` are braces.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

CHUNK, HEADINGS = "chunk", "headings"

_PARTS = re.compile(r"(\{\{|\}\}|\{[^{}]*\}|[{}])")


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the document, or `headings`."""

    name: str
    default: str | None
    """None if the template states none."""


@dataclass(frozen=True, slots=True)
class Template:
    """Text and fields before and after a chunk."""

    before: tuple[str | Field, ...]
    after: tuple[str | Field, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fields, each once; `headings` may be one."""
        return tuple(dict.fromkeys(part.name for part in (*self.before, *self.after) if isinstance(part, Field)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the document's columns, each once."""
        return tuple(name for name in self.names if name != HEADINGS)

    @property
    def required(self) -> frozenset[str]:
        """Names of the columns with a field that states no default."""
        return frozenset(part.name for part in (*self.before, *self.after) if isinstance(part, Field) and part.default is None)

    def render(self, values: Mapping[str, str]) -> tuple[str, str]:
        """Return the text before and after a chunk; a value that is absent or '' becomes its field's default, or ''."""
        before, after = (
            "".join(part if isinstance(part, str) else values.get(part.name) or part.default or "" for part in parts)
            for parts in (self.before, self.after)
        )
        return before, after


def parse_template(text: str) -> Template:
    """Parse a template; ValueError if it is malformed or does not hold {chunk} exactly once."""
    parts: list[str | Field] = []
    for piece in filter(None, _PARTS.split(text)):
        if piece in ("{", "}"):
            raise ValueError(f"{text!r}: a brace without its partner; write {{name}}, or {{{{ and }}}} for braces")
        if piece in ("{{", "}}"):
            parts.append(piece[0])
        elif piece.startswith("{"):
            name, mark, default = piece[1:-1].partition("|")
            if not name.strip():
                raise ValueError(f"{text!r}: {piece!r} names no column")
            parts.append(Field(name.strip(), default if mark else None))
        else:
            parts.append(piece)
    places = [number for number, part in enumerate(parts) if isinstance(part, Field) and part.name == CHUNK]
    if len(places) != 1:
        raise ValueError(f"{text!r}: holds {{chunk}} {len(places)} times; write it once")
    if parts[places[0]] != Field(CHUNK, None):
        raise ValueError(f"{text!r}: {{chunk}} is never empty and has no default; remove it")
    return Template(tuple(parts[: places[0]]), tuple(parts[places[0] + 1 :]))


def escape(text: str) -> str:
    """Return a text as it stands in a template."""
    return text.replace("{", "{{").replace("}", "}}")
