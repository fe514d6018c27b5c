"""Router modules, formerly Asym → the modules of the route that documents, or queries, take."""

import ast
from pathlib import Path
from typing import Any

from embedder.core.errors import ModelError
from embedder.core.spec import Route
from embedder.model.files.json_files import file_errors, read_json

Entry = tuple[str, str]
"""Full name of a module's class, and its path in the model's folder."""

CONFIGS = ("router_config.json", "config.json")
"""The second is that of earlier versions."""
_KINDS = ("Router", "Asym")
_TEXT = "text"
_NAMES: dict[Route, tuple[str, ...]] = {"document": ("document", "doc", "passage", "corpus"), "query": ("query",)}
"""Routes of a task by name; of the document's, sentence-transformers takes only the first for encode_document."""


def expand_routers(folder: Path, entries: list[Entry], route: Route) -> tuple[list[Entry], tuple[Path, ...]]:
    """Return the modules with each Router replaced by those of the route, and the Routers' config files."""
    modules: list[Entry] = []
    configs: tuple[Path, ...] = ()
    for full_name, path in entries:
        if full_name.rpartition(".")[2] not in _KINDS or not full_name.startswith("sentence_transformers."):
            modules.append((full_name, path))
            continue
        config = next((folder / path / name for name in CONFIGS if (folder / path / name).is_file()), folder / path / CONFIGS[0])
        with file_errors(f"{path}/{config.name}".lstrip("/")):
            inner, more = expand_routers(folder, _choose_modules(read_json(config), path, route), route)
        modules, configs = modules + inner, (*configs, config, *more)
    return modules, configs


def _choose_modules(config: dict[str, Any], path: str, route: Route) -> list[Entry]:
    types, structure = config["types"], config["structure"]
    chosen = structure[_choose_route(structure, config["parameters"].get("route_mappings") or {}, route)]
    return [(types[name], f"{path}/{name}" if path else name) for name in chosen]


def _choose_route(structure: dict[str, Any], written: dict[str, str], route: Route) -> str:
    """Return the name of the route that sentence-transformers takes for a text of that task."""
    mappings = {ast.literal_eval(key): name for key, name in written.items()}
    for key in ((route, _TEXT), (route, None), (None, _TEXT), (None, None)):
        if key in mappings:
            return str(mappings[key])
    for name in (*_NAMES[route], _TEXT):
        if name in structure:
            return name
    raise ModelError(
        f"{CONFIGS[0]}: no route for {route!r} (found: {', '.join(structure)}); give a model with routes for documents and queries"
    )
