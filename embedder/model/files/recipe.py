"""A model's name → its folder on this machine → a recipe: what the model's own files say about turning texts into vectors."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from embedder.core.errors import ModelError
from embedder.core.spec import EmbeddingSpec, Pooling
from embedder.model.files.checksum import TOKENIZER_FILES, compute_checksum, list_weights
from embedder.model.files.families import Family, find_family, is_causal, position_limit
from embedder.model.files.st_layout import Layout, Step, blaming, read_json, read_layout

PACKAGE = "package:"
_HUB_FILES = ["*.json", "*.safetensors", *sorted(name for name in TOKENIZER_FILES if not name.endswith(".json"))]
_HUB_LEAVE = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]
_HUB_ERRORS = (HfHubHTTPError, HFValidationError, OSError)  # not in the cache while offline is an OSError too


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """What a model's files say, before any setting of the user's."""

    folder: Path
    transformer_folder: Path
    """Where config, tokenizer and weights are; `folder` itself unless modules.json says otherwise."""
    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    width: int
    """Components after pooling and the modules behind it."""
    dim: int
    """Default; the width is the most that can be asked for."""
    has_final_norm: bool
    max_tokens: int
    """Default; `position_limit` is the most that can be asked for."""
    position_limit: int
    pooling: Pooling
    include_prompt: bool
    document_prompt: str
    query_prompt: str
    layer_norm: bool
    lower_case: bool
    """Lower-case texts before the tokenizer's own normalizer."""
    steps: tuple[Step, ...]
    """Modules between pooling and the cut, in order."""
    checksum: str


def locate_model(model: str, revision: str | None) -> tuple[Path, str | None]:
    """Find the model's folder, downloading it if it is a hub name, and the hub commit if it has one."""
    looks_local = model.startswith((".", "/", "~"))
    folder = Path(model).expanduser()
    if revision is not None and (model.startswith(PACKAGE) or folder.is_dir()):
        raise ModelError(f"embedding.revision={revision!r}: {model!r} is not on a hub; remove the revision")
    if model.startswith(PACKAGE):
        return _locate_package(model), None
    if folder.is_dir():
        return folder, None
    if looks_local:
        raise ModelError(f"embedding.model={model!r}: no such folder")
    try:
        snapshot = Path(snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_LEAVE))
    except _HUB_ERRORS as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise ModelError(f"embedding.model={model!r}: neither a folder nor to be had from the hub ({reason})") from error
    return snapshot, snapshot.name


def peek_model(model: str, revision: str | None) -> tuple[int | None, int | None]:
    """Read a model's layers and components from its plain files, without the import of seconds that `read_recipe` takes.

    None is what they do not say by its usual name, or what only the hub could say. Raises ModelError as the full reading would.
    """
    if model.startswith((PACKAGE, ".", "/", "~")) or Path(model).is_dir():
        folder, _ = locate_model(model, revision)
    else:
        try:
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except _HUB_ERRORS:
            return None, None
    layout = read_layout(folder)
    raw = read_json(layout.transformer_folder / "config.json")
    find_family(raw.get("model_type"))
    num_layers, hidden_size = (raw[name] if isinstance(raw.get(name), int) else None for name in ("num_hidden_layers", "hidden_size"))
    return num_layers, hidden_size and _check_widths(layout, hidden_size)


def read_recipe(folder: Path) -> ModelRecipe:
    """Read a folder in sentence-transformers layout, or of a bare transformer; what it asks for and is not supported is refused."""
    layout = read_layout(folder)
    raw = read_json(layout.transformer_folder / "config.json")
    if not raw:
        raise ModelError(f"no config.json in {layout.transformer_folder.name!r}; give the folder of a transformers model")
    family = find_family(raw.get("model_type"))
    from transformers import AutoConfig  # brings torch: seconds, which what was refused above is spared

    with blaming("config.json"):
        config = AutoConfig.from_pretrained(layout.transformer_folder, trust_remote_code=False, local_files_only=True)
        limit = position_limit(config)
    _refuse_ignored_names(raw, config, family)
    _refuse_decoders(config)
    for step in layout.steps:
        if step.kind != "normalize":
            list_weights(step.folder)
    width = _check_widths(layout, config.hidden_size)
    if layout.truncate_dim and layout.truncate_dim > width:
        raise ModelError(f"config_sentence_transformers.json: truncate_dim={layout.truncate_dim}: the model gives {width} components")
    return ModelRecipe(
        folder=folder,
        transformer_folder=layout.transformer_folder,
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        width=width,
        dim=layout.truncate_dim or width,
        has_final_norm=family.final_norm is not None,
        max_tokens=min(limit, layout.max_seq_length or _tokenizer_length(layout.transformer_folder) or limit),
        position_limit=limit,
        pooling=layout.pooling,
        include_prompt=layout.include_prompt,
        document_prompt=layout.document_prompt,
        query_prompt=layout.query_prompt,
        layer_norm=family.layer_norm,
        lower_case=layout.lower_case,
        steps=layout.steps,
        checksum=compute_checksum(folder, layout.transformer_folder, layout.module_folders),
    )


def _locate_package(model: str) -> Path:
    name = model.removeprefix(PACKAGE)
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"embedding.model={model!r}: Python package {name!r} cannot be imported ({error}); install it") from error
    folder = getattr(package, "MODEL_DIR", None)
    if folder is None or not Path(folder).is_dir():
        raise ModelError(f"embedding.model={model!r}: package {name!r} has no folder MODEL_DIR; choose a package that carries a model")
    return Path(folder)


def _refuse_ignored_names(raw: dict[str, Any], config: Any, family: Family) -> None:
    """Refuse a remote-code config whose values transformers passed over for its own defaults."""
    for other, name in (family.other_names or {}).items():
        if other in raw and raw[other] is not None and raw[other] != getattr(config, name):
            raise ModelError(f"config.json: {other}={raw[other]!r} is a name for remote code only; write it as {name}={raw[other]!r}")


def _refuse_decoders(config: Any) -> None:
    """Refuse an encoder turned decoder: its mask would be causal in some batches only, and a vector hang on its neighbours."""
    asked = [name for name in ("is_decoder", "add_cross_attention") if getattr(config, name, False)]
    if asked and not is_causal(config):
        raise ModelError(f"config.json: {' and '.join(asked)}=true is not supported for family {config.model_type!r}; give an encoder")


def _check_widths(layout: Layout, hidden_size: int) -> int:
    """Follow the width through the modules after pooling."""
    width = hidden_size
    for step in layout.steps:
        if step.kind == "normalize":
            continue
        if step.in_features != width:
            raise ModelError(f"{step.folder.name}/config.json: {step.in_features} components expected, but {width} arrive")
        width = step.out_features
    return width


def _tokenizer_length(folder: Path) -> int | None:
    length = read_json(folder / "tokenizer_config.json").get("model_max_length")
    with blaming("tokenizer_config.json: model_max_length"):
        return int(length) if length else None


def width_of(spec: EmbeddingSpec) -> int:
    """Give the components of the model's vectors before the cut."""
    return read_recipe(locate_model(spec.model, spec.revision)[0]).width
