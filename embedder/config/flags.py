"""A command line → the YAML file, the settings that flags set, and bare flags that are actions."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel

from embedder.config.section import is_text, takes

NULLS = ("null", "None")
MOST_LEVELS = 30
MOST_VALUES = 100_000
"""A list of a thousand patterns is long; aliases of aliases of aliases make a billion values of 400 bytes."""

Place = dict[tuple[str, ...], str]
"""The origin of each key, by its path: `wiki.yaml:6` or `--embedding.depth`."""


@dataclass(slots=True)
class CommandLine:
    """A command line's parts: `[FILE] [--section.key value …] [--action …]`."""

    file: str | None = None
    flags: list[tuple[str, list[str]]] = field(default_factory=list)
    """Names of settings with their values."""
    actions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def split_args(args: Sequence[str], actions: Sequence[str], short: Mapping[str, str]) -> CommandLine:
    """Sort arguments into their parts; `short` maps flags without dots to the settings they set."""
    line = CommandLine()
    values: list[str] | None = None
    """Of the last flag, if it takes more."""
    for arg in args:
        name, equals, value = arg.removeprefix("--").partition("=")
        name = short.get(name, name)
        if arg == "-h" or (arg.startswith("--") and name in actions and not equals):
            line.actions.append("help" if arg == "-h" else name)
            values = None
        elif arg.startswith("--") and "." in name:
            line.flags.append((name, [value] if equals else []))
            values = None if equals else line.flags[-1][1]
        elif arg.startswith("--"):
            line.problems.append(f"{arg}: unknown action{suggest(name, actions, '--')}")
            values = None
        elif values is not None:
            values.append(arg)
        elif line.file is None:
            line.file = arg
        else:
            line.problems.append(f"{arg!r}: a second file; one YAML file is one run (first: {line.file!r})")
    return line


class Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, like YAML 1.2, and refuses values that contain themselves."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: ARG002 - as PyYAML calls it
        """Construct children first, which fails for an alias inside its own anchor."""
        return super().construct_object(node, deep=True)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789"))


def parse_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """Return a text's value and its node; YAMLError if it is not YAML, or if a few bytes of it would take the memory of a machine."""
    level, seen = 0, [0]
    sizes: dict[str, int] = {}
    """Number of values of each anchor, which each alias repeats."""
    anchors: list[str | None] = []
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
            anchors.append(event.anchor)
            seen.append(0)
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1
            size = 1 + seen.pop()
            seen[-1] += size
            if anchor := anchors.pop():
                sizes[anchor] = size
        elif isinstance(event, yaml.NodeEvent):
            seen[-1] += sizes.get(event.anchor or "", 1) if isinstance(event, yaml.AliasEvent) else 1
        problem = f"nested more than {MOST_LEVELS} levels deep" if level > MOST_LEVELS else ""
        if sum(seen) > MOST_VALUES:
            problem = f"more than {MOST_VALUES:,} values, those that aliases repeat included"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=cast(Any, event.start_mark))
    return yaml.load(text, Loader), yaml.compose(text, Loader)


def set_flag(model: type[BaseModel], values: dict[str, Any], places: Place, name: str, texts: list[str]) -> Iterator[str]:
    """Set a flag's value at its path and record the flag as its origin; yield the problems found."""
    path, kind, is_key = _locate(model, name)
    flag = f"--{'.'.join(path)}"
    if not texts and kind is not None and not takes(kind, bool):
        yield f"{flag}: no value given"
    else:
        yield from set_value(values, places, path, flag, _parse_flag(texts, is_key and takes(kind, Any), is_text(kind)))


def set_value(values: dict[str, Any], places: Place, path: tuple[str, ...], origin: str, value: Any) -> Iterator[str]:
    """Set the value at a path, creating sections, and record its origin; yield the problem if a part of the path has another value."""
    target = values
    for size, key in enumerate(path[:-1], 1):
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            section = ".".join(path[:size])
            where = next((places[path[:end]] for end in range(size, 0, -1) if path[:end] in places), origin)
            yield f"{origin}: {section} is not a mapping, so a key cannot be added (see {where}); give --{section} whole"
            return
    target[path[-1]] = value
    for place in [each for each in places if each[: len(path)] == path]:
        del places[place]
    places[path] = origin


def _locate(model: type[BaseModel], name: str) -> tuple[tuple[str, ...], Any, bool]:
    """Return a flag's path, the type of its setting, and whether it names a key in a mapping there.

    Hyphens stand for underscores in the names of settings, but not in keys of a mapping.
    """
    path: list[str] = []
    kind, is_key = None, False
    section: type[BaseModel] | None = model
    for part in name.split("."):
        is_key = section is None
        path.append(part if is_key else part.replace("-", "_"))
        if section is not None:
            kind = section.model_fields[path[-1]].annotation if path[-1] in section.model_fields else None
            section = section_type(kind)
    return tuple(path), kind, is_key


def _parse_flag(texts: list[str], is_free: bool, is_plain: bool) -> Any:
    """Return texts for the model to convert; a value without a declared type (`is_free`) is parsed as in a file, text alone is not."""
    if len(texts) == 1 and is_plain and texts[0] not in NULLS:
        return texts[0]
    if len(texts) == 1:
        return _parse_text(texts[0], is_free)
    return [_parse_text(text, is_free) for text in texts] if is_free else texts or True


def _parse_text(text: str, is_free: bool) -> Any:
    """Parse null and YAML lists and mappings; free text also as true, false, a number or a quoted string."""
    if text in NULLS:
        return None
    if not is_free and text[:1] not in ("[", "{"):
        return text
    try:
        value, _ = parse_yaml(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | int | float) or text[:1] in ("[", "{", "'", '"') else text


def section_type(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a section, optional or not; None for any other setting."""
    models = (each for each in (annotation, *get_args(annotation)) if isinstance(each, type) and issubclass(each, BaseModel))
    return next(models, None)


def suggest(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return the nearest known name, or all of them, as the end of an error message."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {prefix + close[0]!r}?"
    return f" (known: {', '.join(prefix + each for each in known)})" if known else ""
