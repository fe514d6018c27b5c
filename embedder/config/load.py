"""A YAML file and flags become one validated config, or one message with every problem in it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import tyro
import yaml
from pydantic import BaseModel, ValidationError

from embedder.config.flags import Place, parse_yaml, section_type, set_flag, set_value, split_args, suggest
from embedder.core.errors import ConfigError
from embedder.core.redaction import mask_secrets, mask_value

Config = TypeVar("Config", bound=BaseModel)
Options = TypeVar("Options")

MOST_BYTES = 1 << 20
SHOWN_CHARS = 300


class Invocation(NamedTuple, Generic[Config]):
    """A command line's config, and its bare flags, which are actions."""

    config: Config
    actions: frozenset[str]


def parse_options(options: type[Options], args: Sequence[str], job: str) -> Options:
    """Return a job's options, a dataclass, from flags such as --dry-run."""
    return tyro.cli(options, args=args, prog=f"python -m {job}")


def load_config(
    model: type[Config],
    args: Sequence[str],
    actions: Sequence[str] = (),
    job: str = "",
    short: Mapping[str, str] = MappingProxyType({}),
) -> Invocation[Config]:
    """Merge `[FILE] [--section.key value …] [--action …]`: flags override the file, the file overrides defaults.

    `short` maps flags without dots to settings. --help and --print-config print and exit. ConfigError holds all problems, a line
    each, with the line in the file or the flag.
    """
    line = split_args(args, [*actions, "print-config", "help"], short)
    values, places, problems = _read_file(line.file) if line.file else ({}, {}, [])
    problems = line.problems + problems
    if "help" in line.actions:
        _print_help(model, values, [*actions, "print-config"], short, job)
        raise SystemExit(0)
    problems += [problem for name, texts in line.flags for problem in set_flag(model, values, places, name, texts)]
    config = _validate(model, values, places, problems, line.file or "command line")
    if "print-config" in line.actions:
        print(dump_config(config), end="")
        raise SystemExit(0)
    return Invocation(config, frozenset(line.actions))


def load_settings(
    model: type[Config], settings: BaseModel | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any] = MappingProxyType({})
) -> Config:
    """Return a config or section from Python values or a YAML file, with `overrides` by dotted name, such as embedding.depth."""
    if isinstance(settings, str | Path):
        values, places, problems = _read_file(str(settings))
    else:
        given = settings.model_dump(exclude_unset=True) if isinstance(settings, BaseModel) else dict(settings)
        values, places, problems = deepcopy(given), {}, []
    problems += [problem for name, value in overrides.items() for problem in set_value(values, places, tuple(name.split(".")), name, value)]
    return _validate(model, values, places, problems, str(settings) if isinstance(settings, str | Path) else model.__name__)


def _validate(model: type[Config], values: Mapping[str, Any], places: Place, problems: list[str], source: str) -> Config:
    """Return the config; ConfigError holds the problems so far and those of the values."""
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        problems = problems + [_describe(each, places, model, source) for each in error.errors()]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return config


def dump_config(config: BaseModel) -> str:
    """Return a config with all its defaults as YAML that loads to an equal one, except for masked secrets."""
    return yaml.safe_dump(mask_secrets(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def _read_file(file: str) -> tuple[dict[str, Any], Place, list[str]]:
    """Read a YAML file with the line of every key, and the problem of each repeated key."""
    try:
        with Path(file).open("rb") as opened:  # not all of it: it may be a device
            text = opened.read(MOST_BYTES + 1).decode()
        if len(text) > MOST_BYTES:
            raise ConfigError(f"{file}: more than {MOST_BYTES:,} bytes; give the path of a YAML file of settings")
        values, node = parse_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}); give the path of a YAML file") from error
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise ConfigError(f"{file}:{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{file}: holds a {type(values).__name__}; sections such as source: and embedding: are expected")
    places: Place = {}
    problems: list[str] = []
    _mark_lines(node, (), file, places, problems)
    return values or {}, places, problems


def _mark_lines(node: Any, path: tuple[str, ...], file: str, places: Place, problems: list[str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        where = f"{file}:{key.start_mark.line + 1}"
        if here in places:
            problems.append(f"{where}: key {'.'.join(here)!r} is given twice (first: {places[here]})")
        places[here] = where
        _mark_lines(value, here, file, places, problems)


def _describe(error: Mapping[str, Any], places: Place, model: type[BaseModel], source: str) -> str:
    """Return one problem: where, what, with the value, and the allowed values."""
    path = tuple(str(each) for each in error["loc"])
    key = ".".join(path)
    where = _find_place(path, places, source)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        section = _section(model, path[:-1])
        return f"{where}: unknown key {key!r}{suggest(path[-1], list(section.model_fields) if section else [])}"
    if error["type"] == "missing":
        section = _section(model, path)
        needed = [name for name, field in section.model_fields.items() if field.is_required()] if section else []
        names = [f"{key}.{name}" for name in needed] or [key]
        return "\n".join(f"{where}: {name!r} is missing; set it in the file or with --{name}" for name in names)
    if error["type"] == "value_error":
        return f"{where}: {key}: {message}" if key else f"{where}: {message}"
    return f"{where}: {key}={_shorten(repr(mask_value(error['input'], path)))}: {message[:1].lower()}{message[1:]}"


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 20]} … ({len(text):,} characters)"


def _find_place(path: tuple[str, ...], places: Place, source: str) -> str:
    """Return the origin of a key: its own, that of a flag inside it, or that of the section around it."""
    for size in range(len(path), 0, -1):
        if path[:size] in places:
            inner = [place for key, place in places.items() if key[:size] == path[:size] and place.startswith("--")]
            return inner[0] if inner and size == len(path) else places[path[:size]]
    return next((place for key, place in places.items() if key[: len(path)] == path and path), source)


def _section(model: type[BaseModel], path: tuple[str, ...]) -> type[BaseModel] | None:
    for name in path:
        inner = section_type(model.model_fields[name].annotation) if name in model.model_fields else None
        if inner is None:
            return None
        model = inner
    return model


def _print_help(model: type[BaseModel], values: dict[str, Any], actions: Sequence[str], short: Mapping[str, str], job: str) -> None:
    """Print every setting with its meaning and its value, from the file if one is given."""
    print(f"actions: {' '.join(f'--{each}' for each in actions)}\n")
    if short:
        print(f"short flags: {', '.join(f'--{name} for --{setting}' for name, setting in short.items())}\n")
    try:
        default: Any = model.model_validate(mask_secrets(values))
    except ValidationError:
        default = tyro.MISSING_NONPROP
    shown = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
    with suppress(SystemExit):
        tyro.cli(model, default=default, args=["--help"], use_underscores=True, config=shown, prog=f"python -m {job} FILE")
    for name, field in model.model_fields.items():
        section = section_type(field.annotation)
        if section is not None and not field.is_required() and getattr(default, name, None) is None:
            print(f"not set: {' '.join(f'--{name}.{key}' for key in section.model_fields)}")
