"""A YAML file and dotted flags become one validated config, or one message with every problem in it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro
import yaml
from pydantic import BaseModel, ValidationError

from embedder.config.flags import Loader, Place, lengthen, section_type, set_flag, split_args, suggest
from embedder.core.errors import ConfigError
from embedder.core.redaction import mask_secrets, mask_value

Config = TypeVar("Config", bound=BaseModel)
NO_SHORT: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Invocation(Generic[Config]):
    """What a command line asks for: a config, and bare flags that are actions."""

    config: Config
    actions: frozenset[str]


def load_config(
    model: type[Config], args: Sequence[str], actions: Sequence[str] = (), prog: str = "", short: Mapping[str, str] = NO_SHORT
) -> Invocation[Config]:
    """Merge `[FILE] [--section.key value …] [--action …]`: flags beat the file, the file beats defaults; `short` gives flags without dots.

    Raises ConfigError with all problems, a line each, every one with the file's line or the flag it came from.
    """
    file, flags, chosen, problems = split_args([lengthen(arg, short) for arg in args], actions)
    values, places, found = _read_file(file) if file else ({}, {}, [])
    problems += found
    if "help" in chosen:
        _print_help(model, values, actions, prog)
        raise SystemExit(0)
    problems += [problem for name, texts in flags for problem in set_flag(model, values, places, name, texts)]
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        problems += [_describe(each, places, model, file) for each in error.errors()]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return Invocation(config, frozenset(chosen))


def dump_config(config: BaseModel) -> str:
    """Write a config with all its defaults as YAML that loads to an equal one, but for secrets, which are masked."""
    return yaml.safe_dump(mask_secrets(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def _read_file(file: str) -> tuple[dict[str, Any], Place, list[str]]:
    """Read a YAML file with the line of every key; a repeated key is a problem, not a silent last one."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader)
        values = yaml.load(text, Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}); give the path of a YAML file") from error
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise ConfigError(f"{file}:{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if values is None:
        return {}, {}, []
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: holds a {type(values).__name__}; sections such as source: and embedding: are expected")
    places: Place = {}
    problems: list[str] = []
    _mark_lines(node, (), file, places, problems)
    return values, places, problems


def _mark_lines(node: Any, path: tuple[str, ...], file: str, places: Place, problems: list[str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        where = f"{file}:{key.start_mark.line + 1}"
        if here in places:
            problems.append(f"{where}: key {'.'.join(here)!r} stands there twice (first: {places[here]})")
        places[here] = where
        _mark_lines(value, here, file, places, problems)


def _describe(error: Mapping[str, Any], places: Place, model: type[BaseModel], file: str | None) -> str:
    """Say one problem: where, what, with the value; what is allowed."""
    path = tuple(str(each) for each in error["loc"])
    key = ".".join(path)
    where = _place(path, places, file)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        return f"{where}: unknown key {key!r}{suggest(path[-1], known, '')}"
    if error["type"] == "missing":
        needed = [".".join((*path, name)) for name in _required_keys(model, path)] or [key]
        return "\n".join(f"{where}: {name!r} is missing; set it in the file or with --{name}" for name in needed)
    if error["type"] == "value_error":
        return f"{where}: {key}: {message}" if key else f"{where}: {message}"
    return f"{where}: {key}={mask_value(error['input'], path)!r}: {message[:1].lower()}{message[1:]}"


def _place(path: tuple[str, ...], places: Place, file: str | None) -> str:
    """Find where a key was set: itself, the section around it, or for a section the flag or line within it."""
    for size in range(len(path), 0, -1):
        if path[:size] in places:
            inner = [place for key, place in places.items() if key[:size] == path[:size] and place.startswith("--")]
            return inner[0] if inner and size == len(path) else places[path[:size]]
    return next((place for key, place in places.items() if key[: len(path)] == path and path), file or "command line")


def _section(model: type[BaseModel], path: tuple[str, ...]) -> type[BaseModel] | None:
    for name in path:
        inner = section_type(model.model_fields[name].annotation) if name in model.model_fields else None
        if inner is None:
            return None
        model = inner
    return model


def _known_keys(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    section = _section(model, path)
    return list(section.model_fields) if section else []


def _required_keys(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    section = _section(model, path)
    return [name for name, field in section.model_fields.items() if field.is_required()] if section else []


def _print_help(model: type[BaseModel], values: dict[str, Any], actions: Sequence[str], prog: str) -> None:
    """Print every setting with its meaning and the value it has now, the file's own if one was given."""
    print(f"actions: {' '.join(f'--{each}' for each in actions)}\n")
    try:
        default: Any = model.model_validate(mask_secrets(values))
    except ValidationError:
        default = tyro.MISSING_NONPROP
    shown = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
    with suppress(SystemExit):
        tyro.cli(model, default=default, args=["--help"], use_underscores=True, config=shown, prog=f"{prog} FILE")
    for name, field in model.model_fields.items():
        section = section_type(field.annotation)
        if section is not None and not field.is_required() and getattr(default, name, None) is None:
            print(f"not set: {' '.join(f'--{name}.{key}' for key in section.model_fields)}")
