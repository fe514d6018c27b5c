"""A YAML file and dotted flags become one validated config, or one message with every problem in it."""

import difflib
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import tyro
import yaml
from pydantic import BaseModel, ValidationError

from embedder.collector import collect_no_more
from embedder.errors import ConfigError, EmbedderError
from embedder.logs import complain
from embedder.masking import mask_secrets, mask_value

Config = TypeVar("Config", bound=BaseModel)
Place = dict[tuple[str, ...], str]
"""Where each key was set: `wiki.yaml:6` or `--embedding.depth`, by its path."""

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
    file, flags, chosen, problems = _split([_lengthen(arg, short) for arg in args], actions)
    values, places, found = _read_file(file) if file else ({}, {}, [])
    problems += found
    if "help" in chosen:
        _print_help(model, values, actions, prog)
        raise SystemExit(0)
    for path, texts in flags:
        _set(values, places, path, texts)
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


def run_job(job: Callable[[Sequence[str]], int]) -> None:
    """Run a job's main and exit: 0 done, 1 failed, 2 wrong config, 130 interrupted, 141 no reader, 143 terminated.

    The message goes to stderr, without a traceback for what we know.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = job(sys.argv[1:])
    except ConfigError as error:
        complain(str(error))
        code = 2
    except EmbedderError as error:
        complain(str(error))
        code = 1
    except BrokenPipeError:
        if not has_no_reader():
            raise  # a connection's
        # whoever read has seen enough, as `| head` has; what is still held for them is not written on the way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except (KeyboardInterrupt, SystemExit) as stop:
        # while it starts, Ray answers SIGTERM itself, by exiting with the signal's number
        is_terminated = isinstance(stop, Terminated) or getattr(stop, "code", None) == signal.SIGTERM
        if isinstance(stop, SystemExit) and not is_terminated:
            raise
        complain("stopped; finished parts are kept, run again to go on")
        if is_terminated:
            # at once: Ray, if it was only starting, would abort on the way out; its processes end with this one
            sys.stderr.flush()
            os._exit(143)
        code = 130
    collect_no_more()
    sys.exit(code)


def has_no_reader() -> bool:
    """Tell whether the other end of stdout's pipe is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class Terminated(KeyboardInterrupt):
    """SIGTERM: the platform takes the machine away."""


def _stop(*_: object) -> None:
    raise Terminated


def _lengthen(arg: str, short: Mapping[str, str]) -> str:
    name, equals, value = arg.removeprefix("--").partition("=")
    return f"--{short[name]}{equals}{value}" if arg.startswith("--") and name in short else arg


def _split(args: Sequence[str], actions: Sequence[str]) -> tuple[str | None, list[tuple[tuple[str, ...], list[str]]], list[str], list[str]]:
    """Sort a command line into the file, dotted flags with their values, actions, and problems."""
    file: str | None = None
    flags: list[tuple[tuple[str, ...], list[str]]] = []
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
            flags.append((tuple(name.replace("-", "_").split(".")), taking))
            if equals:
                taking = None
        elif arg.startswith("--"):
            taking = None
            problems.append(f"{arg}: unknown action{_suggest(name, known, '--')}")
        elif taking is not None:
            taking.append(arg)
        elif file is None:
            file = arg
        else:
            problems.append(f"{arg!r}: a second file; one YAML file is one run (first: {file!r})")
    return file, flags, chosen, problems


class _Loader(yaml.SafeLoader):
    """SafeLoader, with 1e-3 a number as YAML 1.2 has it."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789"))


def _read_file(file: str) -> tuple[dict[str, Any], Place, list[str]]:
    """Read a YAML file with the line of every key; a repeated key is a problem, not a silent last one."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        node = yaml.compose(text, _Loader)
        values = yaml.load(text, _Loader)
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


def _set(values: dict[str, Any], places: Place, path: tuple[str, ...], texts: list[str]) -> None:
    """Put a flag's value at its path; it then is the flag that a problem there is reported for."""
    target = values
    for name in path[:-1]:
        if not isinstance(target.get(name), dict):
            target[name] = {}
        target = target[name]
    target[path[-1]] = _parse_flag(texts)
    for place in [each for each in places if each[: len(path)] == path]:
        del places[place]
    places[path] = f"--{'.'.join(path)}"


def _parse_flag(texts: list[str]) -> Any:
    """Take text as it stands, for the model to convert; null, and YAML lists and mappings, are read as such."""
    if len(texts) != 1:
        return texts or True
    text = texts[0]
    if text in ("null", "None"):
        return None
    if text[:1] in ("[", "{"):
        try:
            return yaml.load(text, _Loader)
        except yaml.YAMLError:
            return text
    return text


def _describe(error: Mapping[str, Any], places: Place, model: type[BaseModel], file: str | None) -> str:
    """Say one problem: where, what, with the value; what is allowed."""
    path = tuple(str(each) for each in error["loc"])
    key = ".".join(path)
    where = _place(path, places, file)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        return f"{where}: unknown key {key!r}{_suggest(path[-1], known, '')}"
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
        inner = _section_type(model.model_fields[name].annotation) if name in model.model_fields else None
        if inner is None:
            return None
        model = inner
    return model


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """Give the model of a section, also of one that may be left out."""
    models = (each for each in (annotation, *get_args(annotation)) if isinstance(each, type) and issubclass(each, BaseModel))
    return next(models, None)


def _known_keys(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    section = _section(model, path)
    return list(section.model_fields) if section else []


def _required_keys(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    section = _section(model, path)
    return [name for name, field in section.model_fields.items() if field.is_required()] if section else []


def _suggest(name: str, known: Sequence[str], prefix: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {prefix + close[0]!r}?"
    return f" (known: {', '.join(prefix + each for each in known)})" if known else ""


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
        section = _section_type(field.annotation)
        if section is not None and not field.is_required() and getattr(default, name, None) is None:
            print(f"not set: {' '.join(f'--{name}.{key}' for key in section.model_fields)}")
