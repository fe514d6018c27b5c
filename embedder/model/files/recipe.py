"""A model's name → its folder on this machine → a recipe: how the model's own files turn texts into vectors."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from embedder.core.errors import ModelError
from embedder.core.spec import EmbeddingSpec, Route
from embedder.model.files.adapters import CONFIG, Adapters, find_adapters
from embedder.model.files.checksum import TOKENIZER_FILES, compute_checksum, list_files, list_weights
from embedder.model.files.families import LINEAR, Family, find_family, position_limit
from embedder.model.files.guards import refuse_entries, refuse_sources
from embedder.model.files.json_files import file_errors, read_json
from embedder.model.files.model_config import is_translated, load_config, read_config
from embedder.model.files.st_layout import REMOTE_MODULE, Layout, Step, read_layout, read_layouts

PACKAGE = "package:"
_LOCAL = (".", "/", "~")
_HUB_FILES = ["*.json", "*.safetensors", *sorted(name for name in TOKENIZER_FILES if not name.endswith(".json"))]
_HUB_IGNORED = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]
_TRUNCATION = re.compile(r'"truncation"\s*:\s*\{[^{}]*"direction"\s*:\s*"(\w+)"')
_HEAD_CHARS = 2000
"""Start of tokenizer.json that holds its truncation; the vocabulary is at its end."""
_CONFIG_POOLINGS: dict[str, dict[str, str]] = {"emb_pooler": {}, "pooling": {"avg": "mean"}}
"""Entries of config.json that remote code reads, with the names of poolings that differ."""
_HUB_ERRORS = (HfHubHTTPError, HFValidationError, OSError)  # OSError: offline, and not in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe(Layout):
    """The contents of a model's files, before the user's settings."""

    folder: Path
    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    width: int
    """Components after pooling and the modules that follow."""
    dim: int
    """Default; the maximum is `width`."""
    has_final_norm: bool
    max_tokens: int
    """Default; the maximum is `position_limit`."""
    position_limit: int
    layer_norm: bool
    """A guess for nomic_bert: only nomic-embed-text-v1.5 has it, whose files say mean pooling and no Normalize."""
    truncates_left: bool
    """Whether the tokenizer keeps the end of a text that is too long."""
    checksum: str
    matryoshka_dims: tuple[int, ...]
    """Dims that the files state the model was trained for, ascending; empty if they state none."""
    adapters: Adapters | None
    is_translated: bool
    """Whether config.json names remote code, of which transformers' own family computes the same."""


def locate_model(model: str, revision: str | None, with_weights: bool = True) -> tuple[Path, str | None]:
    """Return the model's folder, downloaded if the model is a hub name, and its hub commit if there is one."""
    folder = Path(model).expanduser()
    if revision is not None and (model.startswith(PACKAGE) or folder.is_dir()):
        raise ModelError(f"embedding.revision={revision!r}: {model!r} is not on a hub; remove the revision")
    if model.startswith(PACKAGE):
        return _locate_package(model), None
    if folder.is_dir():
        return folder, None
    if model.startswith(_LOCAL):
        raise ModelError(f"embedding.model={model!r}: no such folder")
    ignored = _HUB_IGNORED if with_weights else [*_HUB_IGNORED, "*.safetensors"]
    try:
        snapshot = Path(snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=ignored))
        more = _list_more(snapshot, with_weights)
        if more:
            snapshot_download(model, revision=snapshot.name, allow_patterns=more)
    except _HUB_ERRORS as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise ModelError(f"embedding.model={model!r}: not a folder, and not available from the hub ({reason})") from error
    return snapshot, snapshot.name


def _list_more(snapshot: Path, with_weights: bool) -> list[str]:
    """Return patterns of further files: pickled weights where folders have no safetensors, and tables, which hold a model's sizes."""
    try:
        layouts = read_layouts(snapshot)
    except ModelError:  # raised again when the recipe is read
        return []
    more: list[str] = []
    for layout in layouts if with_weights else [each for each in layouts if each.is_static]:
        folders = [layout.transformer_folder, *(step.folder for step in layout.steps if step.kind != "normalize")]
        lacking = [folder.relative_to(snapshot) for folder in folders if not any(folder.glob("*.safetensors"))]
        kinds = ("pytorch_model*.bin", "model.safetensors") if layout.is_static else ("pytorch_model*.bin",)
        more += [(folder / kind).as_posix() for folder in lacking for kind in kinds]
    return more


def peek_model(model: str, revision: str | None) -> tuple[int | None, int | None]:
    """Read the number of layers and components from a model's JSON files, without the seconds of imports that `read_recipe` needs.

    None: not stored under the usual name, or not in the hub's cache. Raises the same ModelError as `read_recipe`.
    """
    if model.startswith((PACKAGE, *_LOCAL)) or Path(model).is_dir():
        folder, _ = locate_model(model, revision)
    else:
        try:
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except _HUB_ERRORS:
            return None, None
    layout = read_layout(folder)
    raw = read_config(layout)
    family = find_family(raw.get("model_type"))
    num_layers, hidden_size = (raw[name] if isinstance(raw.get(name), int) else None for name in ("num_hidden_layers", "hidden_size"))
    if hidden_size is None or (family.projection and family.projection[1] not in raw):
        return num_layers, None
    return num_layers, _check_widths(_add_projection(layout, family, raw), hidden_size)


def read_recipe(folder: Path, with_weights: bool = True, route: Route = "document") -> ModelRecipe:
    """Read a folder in sentence-transformers layout, or of a bare transformer; ModelError names an unsupported setting.

    Without weights, the checksum is empty. With a Router it covers both routes.
    """
    layout = read_layout(folder, route)
    raw = read_config(layout)
    if not raw:
        raise ModelError(f"no config.json in {layout.transformer_folder.name!r}; give the folder of a transformers model")
    family = find_family(raw.get("model_type"))
    refuse_sources(raw, folder, layout.transformer_folder)
    config = load_config(layout)  # imports torch: seconds, after the cheap checks
    with file_errors("config.json"):
        limit = position_limit(config)
    refuse_entries(raw, config, family)
    adapters = _find_adapters(layout)
    if layout.has_remote_module and adapters is None:
        raise ModelError(f"modules.json: module {REMOTE_MODULE!r} is not part of sentence_transformers; remote code is not run")
    _check_pooling(raw, layout)
    layout = _add_projection(layout, family, config.to_dict())
    for step in layout.steps:
        if step.kind != "normalize" and with_weights:
            list_weights(step.folder)
    width = _check_widths(layout, config.hidden_size)
    if layout.truncate_dim and layout.truncate_dim > width:
        raise ModelError(f"config_sentence_transformers.json: truncate_dim={layout.truncate_dim}: the model has {width} components")
    return ModelRecipe(
        **{each.name: getattr(layout, each.name) for each in fields(layout)},
        folder=folder,
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        width=width,
        dim=layout.truncate_dim or width,
        has_final_norm=family.final_norm is not None,
        max_tokens=min(limit, layout.max_seq_length or _tokenizer_length(layout.transformer_folder) or limit),
        position_limit=limit,
        layer_norm=config.model_type == "nomic_bert" and layout.pooling == "mean" and not layout.ends_normalized,
        truncates_left=_truncates_left(layout.transformer_folder),
        checksum=_compute_checksum(folder) if with_weights else "",
        matryoshka_dims=_list_dims(raw, width) or _list_dims(read_json(folder / "config_sentence_transformers.json"), width),
        adapters=adapters,
        is_translated=is_translated(layout),
    )


def read_query_recipe(recipe: ModelRecipe, with_weights: bool = True) -> ModelRecipe | None:
    """Read the recipe of a Router's route for queries, None without a Router; ModelError if its vectors are not as wide."""
    if not recipe.routers:
        return None
    queries = read_recipe(recipe.folder, with_weights, "query")
    if queries.width != recipe.width:
        where = recipe.routers[0].name
        raise ModelError(f"{where}: vectors of queries have {queries.width} components, those of documents {recipe.width}; give equal ones")
    return queries


def _find_adapters(layout: Layout) -> Adapters | None:
    original = read_json(layout.transformer_folder / "config.json") if is_translated(layout) else {}
    return find_adapters(original, layout.transformer_folder)


def _compute_checksum(folder: Path) -> str:
    return compute_checksum(folder, set().union(*(list_files(folder, each, _find_adapters(each)) for each in read_layouts(folder))))


def _check_pooling(raw: dict[str, Any], layout: Layout) -> None:
    """Raise ModelError if config.json names another pooling than the module."""
    for name, poolings in _CONFIG_POOLINGS.items():
        if raw.get(name) is not None and poolings.get(str(raw[name]), str(raw[name])) != layout.pooling:
            raise ModelError(f"config.json: {name}={raw[name]!r}, but the pooling is {layout.pooling!r}; mend modules.json")


def find_recipe(spec: EmbeddingSpec) -> ModelRecipe:
    """Read the recipe of a spec's model."""
    return read_recipe(locate_model(spec.model, spec.revision)[0], route=spec.route)


def _locate_package(model: str) -> Path:
    name = model.removeprefix(PACKAGE)
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"embedding.model={model!r}: Python package {name!r} cannot be imported ({error}); install it") from error
    folder = getattr(package, "MODEL_DIR", None)
    if folder is None or not Path(folder).is_dir():
        raise ModelError(f"embedding.model={model!r}: package {name!r} has no folder MODEL_DIR; choose a package that contains a model")
    return Path(folder)


def _add_projection(layout: Layout, family: Family, config: Mapping[str, Any]) -> Layout:
    """Return the layout with the transformer's projection as the first module after pooling; ModelError if it cannot be moved there."""
    if family.projection is None:
        return layout
    name, width = family.projection
    if layout.pooling not in LINEAR:
        raise ModelError(f"modules.json: pooling {layout.pooling} of projected states is not supported; choose among {', '.join(LINEAR)}")
    if (layout.transformer_folder / CONFIG).is_file():
        raise ModelError(f"{CONFIG}: not supported beside {name}; merge it (peft: merge_and_unload), save the model again")
    names = (f"{name}.weight", f"{family.part}{name}.weight")
    step = Step("dense", layout.transformer_folder, config["hidden_size"], config[width], bias=False, weight_names=names)
    return replace(layout, steps=(step, *layout.steps))


def _check_widths(layout: Layout, hidden_size: int) -> int:
    """Return the width after pooling and the modules that follow; ModelError if two do not fit together."""
    width = hidden_size * len(layout.pooling.split("+"))
    for step in layout.steps:
        if step.kind == "normalize":
            continue
        if step.in_features != width:
            raise ModelError(f"{step.folder.name}/config.json: in_features={step.in_features}, but its input has {width} components")
        width = step.out_features
    return width


def _list_dims(config: dict[str, Any], width: int) -> tuple[int, ...]:
    """Return the dims that a config names, as vLLM and sentence-transformers' losses write them."""
    named = config.get("matryoshka_dimensions") or config.get("matryoshka_dims") or []
    found = named if isinstance(named, list) else []
    return tuple(sorted({dim for dim in found if isinstance(dim, int) and 0 < dim <= width}))


def _tokenizer_length(folder: Path) -> int | None:
    length = read_json(folder / "tokenizer_config.json").get("model_max_length")
    with file_errors("tokenizer_config.json: model_max_length"):
        return int(length) if length else None


def _truncates_left(folder: Path) -> bool:
    """Return whether tokenizer_config.json, or else tokenizer.json, truncates at the beginning."""
    side = read_json(folder / "tokenizer_config.json").get("truncation_side")
    if side is None and (folder / "tokenizer.json").is_file():
        with (folder / "tokenizer.json").open(encoding="utf-8", errors="replace") as file:
            found = _TRUNCATION.search(file.read(_HEAD_CHARS))
        side = found[1] if found else None
    return str(side).lower() == "left"


def width_of(spec: EmbeddingSpec) -> int:
    """Return the number of components of the model's vectors before truncation."""
    return find_recipe(spec).width
