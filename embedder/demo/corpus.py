"""Writes the demo corpus: the docstrings of the running Python's standard library, as shards of documents."""

import gzip
import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq

from embedder.core.errors import StorageError

SHARDS = tuple(f"stdlib-{number}.{suffix}" for number, suffix in enumerate(["jsonl.gz"] * 4 + ["parquet"] * 4))

_MIN_TEXT_CHARS = 30
"""Shorter ones add nothing to the name, such as namedtuple's `Alias for field number 0`."""
_MAX_SIGNATURE_CHARS = 160

_LEFT_OUT = frozenset({"antigravity", "distutils", "encodings", "idlelib", "lib2to3", "pydoc_data", "test", "this", "turtledemo"})
"""Modules that open a browser or print, that setuptools replaces, or that are tests, tables and programs."""
_LEFT_OUT_BELOW = re.compile(r"_.*|tests?|test_.*")
_PUBLIC = {"posixpath": "os.path", "posix": "os"}
_ELSEWHERE = frozenset({"genericpath", "ntpath", "nt", "posix"})
"""Other systems' os.path, and the modules behind os and os.path, whose members appear under the public names."""


@dataclass(frozen=True, slots=True)
class Document:
    """One docstring. `id` is unique over the corpus."""

    id: str
    title: str
    text: str
    module: str
    kind: str
    url: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Result of writing the corpus; sizes are in the order of its shards."""

    documents: int
    shard_bytes: Mapping[str, int]
    missing_modules: tuple[str, ...]
    """Modules that this Python lists but cannot import, such as those of another operating system."""


@dataclass(frozen=True, slots=True)
class _Named:
    name: str
    module: str
    kind: str
    value: object


def write_corpus(folder: Path) -> Corpus:
    """Write the shards. Their bytes depend on the Python alone; a shard with the same bytes is left untouched."""
    shard_bytes = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        documents, missing = read_documents()
        for number, name in enumerate(SHARDS):
            data = encode_shard(name, [document for document in documents if shard_of(document) == number])
            path = folder / name
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)
            shard_bytes[name] = len(data)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror or error}); give a writable folder") from error
    return Corpus(len(documents), shard_bytes, missing)


def shard_of(document: Document) -> int:
    """Return the number of a document's shard, chosen by module: other changes never move it."""
    return zlib.crc32(document.module.encode()) % len(SHARDS)


def encode_shard(name: str, documents: Sequence[Document]) -> bytes:
    """Return documents in the format of the shard's name, gzip JSONL or parquet; equal documents give equal bytes."""
    rows = [asdict(document) for document in documents]
    if not name.endswith(".parquet"):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return gzip.compress(lines.encode(), mtime=0)
    schema = pa.schema([(column, pa.string()) for column in Document.__slots__])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def read_documents() -> tuple[list[Document], tuple[str, ...]]:
    """Return every public docstring of the standard library, in order of id, and the names of modules that cannot be imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules warn when imported or inspected
        modules, missing = _import_modules()
        named = [_Named(name, name, "module", module) for name, module in modules.items()]
        named += _choose_names(_module_members(modules))
        documents = {each.id: each for each in map(_to_document, _with_class_members(named)) if len(each.text) >= _MIN_TEXT_CHARS}
    return [documents[name] for name in sorted(documents)], missing


def _import_modules() -> tuple[dict[str, ModuleType], tuple[str, ...]]:
    modules: dict[str, ModuleType] = {}
    missing = []
    names = sorted(name for name in sys.stdlib_module_names if name not in _LEFT_OUT and (name == "__future__" or not name.startswith("_")))
    while names:
        name = names.pop(0)
        try:
            module = importlib.import_module(name)
        except Exception:  # noqa: BLE001 - a module of another system may fail in any way; its name is reported
            missing.append(name)
            continue
        if name not in _ELSEWHERE:
            modules[_PUBLIC.get(name, name)] = module
        children = [child.name for child in pkgutil.iter_modules(getattr(module, "__path__", []))]
        names += [f"{name}.{child}" for child in sorted(children) if not _LEFT_OUT_BELOW.fullmatch(child)]
    return modules, tuple(missing)


def _module_members(modules: Mapping[str, ModuleType]) -> Iterator[_Named]:
    for module_name, module in modules.items():
        listed = getattr(module, "__all__", None)
        for name in sorted(vars(module) if listed is None else listed):
            value = getattr(module, name, None)
            belongs = _is_standard(value) if listed is not None else not _is_reexport(value, module_name)
            if belongs and not name.startswith("_") and not inspect.ismodule(value) and _docstring(value):
                qualified = name if module_name == "builtins" else f"{module_name}.{name}"
                yield _Named(qualified, module_name, _kind(value), value)


def _choose_names(candidates: Iterator[_Named]) -> list[_Named]:
    """Return one name for each object: in its own package before re-exports, then the shallowest, as in the documentation."""
    best: dict[int, tuple[tuple[bool, int, bool, str], _Named]] = {}
    for each in candidates:
        own_name = each.name.rpartition(".")[2] == getattr(each.value, "__name__", None)
        rank = (_is_reexport(each.value, each.module), each.name.count("."), not own_name, each.name)
        key = id(_unwrapped(each.value))
        if key not in best or rank < best[key][0]:
            best[key] = (rank, each)
    return [each for _, each in best.values()]


def _with_class_members(named: list[_Named]) -> Iterator[_Named]:
    """Yield each name, and after a class the members it defines itself; inherited ones stay with the class that documents them."""
    seen = {id(_unwrapped(each.value)) for each in named}
    for each in named:
        yield each
        if not isinstance(each.value, type):
            continue
        # a member's own name before its aliases
        members = sorted(vars(each.value).items(), key=lambda item: (getattr(_unwrapped(item[1]), "__name__", item[0]) != item[0], item[0]))
        for name, member in members:
            key = id(_unwrapped(member))
            if not name.startswith("_") and key not in seen and _docstring(member):
                seen.add(key)
                kind = "method" if inspect.isroutine(_unwrapped(member)) else "attribute"
                yield _Named(f"{each.name}.{name}", each.module, "class" if isinstance(member, type) else kind, member)


def _unwrapped(value: object) -> object:
    return value.__func__ if isinstance(value, staticmethod | classmethod) or inspect.ismethod(value) else value


def _is_standard(value: object) -> bool:
    """Return whether the object is the library's own, not a replacement by a debugger or a test runner."""
    origin = getattr(value, "__module__", None)
    return not isinstance(origin, str) or origin.split(".")[0] in sys.stdlib_module_names


def _is_reexport(value: object, module_name: str) -> bool:
    """Return whether the object comes from another package; _io belongs to io, and every builtin to builtins."""
    origin = str(getattr(value, "__module__", None) or "")
    home = _PUBLIC.get(origin, origin).split(".")[0].lstrip("_")
    return module_name != "builtins" and module_name.split(".")[0] != home


def _docstring(value: object) -> str:
    """Return the object's own docstring, not that of its type; a class without one has that of its constructor."""
    value = _unwrapped(value)
    doc = getattr(value, "__doc__", None)
    if isinstance(value, type):
        doc = doc or getattr(vars(value).get("__init__"), "__doc__", None)
    elif doc == type(value).__doc__:
        return ""
    return inspect.cleandoc(doc) if isinstance(doc, str) else ""


def _kind(value: object) -> str:
    if isinstance(value, type):
        return "class"
    return "function" if inspect.isroutine(value) or hasattr(value, "__wrapped__") else "data"


def _to_document(each: _Named) -> Document:
    title = each.name + (_signature(each.value) if each.kind in ("class", "function", "method") else "")
    return Document(each.name, title, _docstring(each.value), each.module, each.kind, _url(each))


def _signature(value: object) -> str:
    try:
        text = str(inspect.signature(_unwrapped(value)))  # type: ignore[arg-type] # TypeError if it is not callable
    except (TypeError, ValueError, NameError, AttributeError):  # a C signature may be invalid
        return ""
    text = re.sub(r" at 0x[0-9A-Fa-f]+", "", text)
    depends_on_the_process = "<weakref" in text  # logging.shutdown shows the current handlers
    return "(…)" if depends_on_the_process or len(text) > _MAX_SIGNATURE_CHARS else text


def _url(each: _Named) -> str:
    page, anchor = each.module.lower(), each.name
    if each.kind == "module":
        anchor = f"module-{each.name}"
    elif each.module == "builtins":
        page = "functions" if each.kind == "function" else "stdtypes"
        if isinstance(each.value, type) and issubclass(each.value, BaseException):
            page = "exceptions"
    return f"https://docs.python.org/{sys.version_info.major}.{sys.version_info.minor}/library/{page}.html#{anchor}"
