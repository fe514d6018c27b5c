"""A command line → the YAML file, what each flag sets, and bare flags that are actions."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from embedder.config.section import takes

Place = dict[tuple[str, ...], str]
"""Where each key was set: `wiki.yaml:6` or `--embedding.depth`, by its path."""


def lengthen(arg: str, short: Mapping[str, str]) -> str:
    """Give a flag without dots its long name."""
    name, equals, value = arg.removeprefix("--").partition("=")
    return f"--{short[name]}{equals}{value}" if arg.startswith("--") and name in short else arg


def split_args(args: Sequence[str], actions: Sequence[str]) -> tuple[str | None, list[tuple[str, list[str]]], list[str], list[str]]:
    """Sort a command line into the file, dotted flags with their values, actions, and problems."""
    file: str | None = None
    flags: list[tuple[str, list[str]]] = []
    chosen: list[str] = []
    problems: list[str] = []
    taking: list[str] | None = None
    known = [*actions, "help"]
    for arg in args:
        name, equals, value = arg.removeprefix("--").partition("=")
        if arg in ("-h", "--help") or (arg.startswith("--") and name in known and not equals):
            chosen.append("help" if arg == "-h" else name)
            taking = None
        elif arg.startswith("--") and "." in name:
            taking = [value] if equals else []
            flags.append((name, taking))
            if equals:
                taking = None
        elif arg.startswith("--"):
            taking = None
            problems.append(f"{arg}: unknown action{suggest(name, known, '--')}")
        elif taking is not None:
            taking.append(arg)
        elif file is None:
            file = arg
        else:
            problems.append(f"{arg!r}: a second file; one YAML file is one run (first: {file!r})")
    return file, flags, chosen, problems


class Loader(yaml.SafeLoader):
    """SafeLoader, with 1e-3 a number as YAML 1.2 has it, and no value that holds itself."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: ARG002 - as PyYAML calls it
        """Construct what is inside first, which for an alias within what it stands for is refused."""
        return super().construct_object(node, deep=True)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789"))


def set_flag(model: type[BaseModel], values: dict[str, Any], places: Place, name: str, texts: list[str]) -> Iterator[str]:
    """Put a flag's value at its path; it then is the flag that a problem there is reported for. Gives what is wrong with it already."""
    path, kind, is_key = _locate(model, name)
    flag = f"--{'.'.join(path)}"
    if not texts and kind is not None and not takes(kind, bool):
        yield f"{flag}: no value given"
        return
    target = values
    for size, key in enumerate(path[:-1], 1):
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            section = ".".join(path[:size])
            where = next((places[path[:end]] for end in range(size, 0, -1) if path[:end] in places), flag)
            yield f"{flag}: {section} is no mapping to which a key can be added (see {where}); give --{section} whole"
            return
    target[path[-1]] = _parse_flag(texts, is_key and takes(kind, Any))
    for place in [each for each in places if each[: len(path)] == path]:
        del places[place]
    places[path] = flag


def _locate(model: type[BaseModel], name: str) -> tuple[tuple[str, ...], Any, bool]:
    """Give a flag's path, the type of the setting that it is or is a part of, and whether it is a key of a mapping there.

    Hyphens stand for underscores in the names of settings; keys of a mapping are as they stand.
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


def _parse_flag(texts: list[str], is_free: bool) -> Any:
    """Take text as it stands, for the model to convert; what no model knows is free, and read as in a file."""
    if len(texts) != 1:
        return [_parse_text(text, is_free) for text in texts] if is_free else texts or True
    return _parse_text(texts[0], is_free)


def _parse_text(text: str, is_free: bool) -> Any:
    """Read null, and YAML lists and mappings, as such; free text also as true, false, a number or in quotes."""
    if text in ("null", "None"):
        return None
    if not is_free and text[:1] not in ("[", "{"):
        return text
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | int | float) or text[:1] in ("[", "{", "'", '"') else text


def section_type(annotation: Any) -> type[BaseModel] | None:
    """Give the model of a section, also of one that may be left out."""
    models = (each for each in (annotation, *get_args(annotation)) if isinstance(each, type) and issubclass(each, BaseModel))
    return next(models, None)


def suggest(name: str, known: Sequence[str], prefix: str) -> str:
    """Name the nearest of what is known, or all of it."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {prefix + close[0]!r}?"
    return f" (known: {', '.join(prefix + each for each in known)})" if known else ""
