"""A recipe, a depth and a dtype → a transformer with exactly that many layers, and no weight missing."""

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from embedder.config.compute import Backend, Layout
from embedder.core.errors import ConfigError, ModelError
from embedder.core.quantization import Floats
from embedder.core.rotation import check_rotation
from embedder.core.spec import EmbeddingSpec, FinalNorm
from embedder.model.backends import check_backend, check_c_compiler, check_triton, has_openvino
from embedder.model.batches import LayoutName
from embedder.model.calibration import Calibration
from embedder.model.exits import Exit, ExitPooler
from embedder.model.files.checksum import list_weights
from embedder.model.files.families import Family, find_family
from embedder.model.files.json_files import file_errors
from embedder.model.files.model_config import find_class, load_config
from embedder.model.files.recipe import ModelRecipe
from embedder.model.float8 import check_device
from embedder.model.neurons import KeptNeurons
from embedder.model.pooling import Head, load_steps
from embedder.model.pruning import prune_layers
from embedder.model.runtime import multiplies_bfloat16
from embedder.model.weights import read_combined, sketch_weights

logger = logging.getLogger(__name__)

_BUFFERS = frozenset({"position_ids", "token_type_ids", "inv_freq"})
"""Constants that earlier versions of transformers saved with the weights."""

BackendName = Literal["torch", "compiled", "fused", "openvino"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(dtype: str, device: str, family: str, float8: bool = False) -> torch.dtype:
    """Choose the computing dtype: auto is bfloat16 around float8 and where hardware multiplies it natively, else float32."""
    if float8:
        check_device(device)
        if dtype not in ("auto", "bfloat16"):
            raise ConfigError(f"compute.dtype={dtype}: around embedding.float8 all is bfloat16; leave one of the two out")
        return torch.bfloat16
    if dtype == "float16" and not find_family(family).float16:
        raise ConfigError(f"compute.dtype=float16: family {family!r} overflows to NaN in float16; choose bfloat16 or float32")
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def resolve_layout(layout: Layout, device: str, dtype: torch.dtype, family: str) -> LayoutName:
    """Choose how batches are laid out: auto is packed where a device has attention for it, which is in half precision."""
    is_cuda, is_half = torch.device(device).type == "cuda", dtype in (torch.bfloat16, torch.float16)
    can_pack = find_family(family).packed
    if layout == "packed" and not can_pack:
        raise ConfigError(f"compute.layout=packed: family {family!r} has no attention over packed sequences; choose auto or padded")
    if layout == "packed" and is_cuda and not is_half:
        raise ConfigError("compute.layout=packed: needs bfloat16 or float16 on cuda, not float32; set compute.dtype, or choose padded")
    if layout == "auto":
        return "packed" if is_cuda and is_half and can_pack else "padded"
    return layout


def resolve_backend(
    backend: Backend, device: str, dtype: torch.dtype, layout: LayoutName, float8: bool = False, late: bool = False
) -> BackendName:
    """Choose what runs the layers: auto is openvino where it is installed, for padded batches on a CPU. It has yet to agree with torch."""
    if backend in ("compiled", "fused"):
        check_c_compiler(backend, device)
    if backend == "fused":
        check_triton(layout)
    if float8:
        if backend == "openvino":
            raise ConfigError("compute.backend=openvino: has no products in float8; leave it out, or embedding.float8")
        return backend if backend in ("compiled", "fused") else "torch"
    if backend != "auto":
        if late and backend == "openvino":
            raise ConfigError("compute.backend=openvino: does not pool by chunks; leave it out, or chunking.late")
        check_backend(backend)
        return backend
    fits = not late and torch.device(device).type == "cpu" and dtype != torch.float16 and layout == "padded"
    return "openvino" if fits and has_openvino() else "torch"


def load_transformer(
    recipe: ModelRecipe, depth: int, final_norm: FinalNorm, dtype: torch.dtype, adapter: str | None = None
) -> PreTrainedModel:
    """Build and load the first `depth` layers; those above are neither built nor read."""
    if not 1 <= depth <= recipe.num_layers:
        raise ModelError(f"embedding.depth={depth}: {recipe.folder.name!r} has {recipe.num_layers} layers; choose 1 to {recipe.num_layers}")
    family = find_family(recipe.family)
    with _quiet_transformers(), file_errors(recipe.folder.name):
        config, combined = _cut_config(recipe, depth), read_combined(recipe, adapter, depth)
        model_class = _model_class(family) if combined is None else type(_build_empty(recipe, config))
        model, report = model_class.from_pretrained(
            recipe.transformer_folder if combined is None else None,
            config=config,
            state_dict=combined,
            dtype=dtype,
            attn_implementation=family.attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused by name below
            use_safetensors=list_weights(recipe.transformer_folder)[-1].suffix == ".safetensors",
            weights_only=True,
            local_files_only=True,
            trust_remote_code=False,
            use_kernels=False,
            **_pooler_arguments(recipe),
        )
    _refuse_misfits(recipe, depth, report)
    if family.shared_layers:
        _unshare(model, family.layers, depth)
    assert_depth(model, recipe, depth)
    if family.projection:
        model.set_submodule(family.projection[0], nn.Identity())
    if final_norm == "skip" and family.final_norm is not None:
        model.set_submodule(family.final_norm, nn.Identity())
    if depth < recipe.num_layers:
        left_out = len(report["unexpected_keys"])
        logger.info("%s: %d of %d layers built, %d weights left out", recipe.folder.name, depth, recipe.num_layers, left_out)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def load_layers(recipe: ModelRecipe, spec: EmbeddingSpec, dtype: torch.dtype, neurons: KeptNeurons | None) -> PreTrainedModel:
    """Load the layers of a spec, with some of their neurons or all."""
    model = load_transformer(recipe, spec.depth, spec.final_norm, dtype, spec.adapter)
    if neurons is not None:
        layers = model.get_submodule(find_family(recipe.family).layers)
        assert isinstance(layers, nn.ModuleList)
        prune_layers(layers, model.config, neurons)
    return model


def check_weights(recipe: ModelRecipe) -> None:
    """Raise ModelError if the names and shapes of the weights are not those of the whole model; reads only the files' headers."""
    with _quiet_transformers(), file_errors(recipe.folder.name):
        config = _cut_config(recipe, recipe.num_layers)
        _, report = type(_build_empty(recipe, config)).from_pretrained(
            None,
            config=_cut_config(recipe, recipe.num_layers),
            state_dict=sketch_weights(recipe),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_pooler_arguments(recipe),
        )
    _refuse_misfits(recipe, recipe.num_layers, report)


def _model_class(family: Family) -> Any:
    return find_class(family.model_class) if family.model_class else AutoModel


def _unshare(model: Any, path: str, depth: int) -> None:
    """Make each run of the shared layer a module of its own, with the same weights, so that it can be tapped and counted."""
    (layer,) = model.get_submodule(path)
    kept = {id(each): each for each in (model.config, *model.parameters())}
    model.set_submodule(path, nn.ModuleList(copy.deepcopy(layer, dict(kept)) for _ in range(depth)))
    model.config.num_hidden_groups = depth


def _build_empty(recipe: ModelRecipe, config: Any) -> Any:
    """Build a model without memory for its weights."""
    family = find_family(recipe.family)
    with torch.device("meta"):
        return _model_class(family)(config) if family.model_class else AutoModel.from_config(config)  # type: ignore[no-untyped-call]


def _pooler_arguments(recipe: ModelRecipe) -> dict[str, Any]:
    return {"add_pooling_layer": False} if find_family(recipe.family).pooler else {}


def _refuse_misfits(recipe: ModelRecipe, depth: int, report: dict[str, Any]) -> None:
    """Raise ModelError for weights that are missing, of another shape, or not part of the model; layers left out and heads are known."""
    misshapen = [f"{name}: {list(found)} in the file, {list(wanted)} by config.json" for name, found, wanted in report["mismatched_keys"]]
    lacking = sorted(report["missing_keys"]) + sorted(misshapen)
    if lacking or report["error_msgs"]:
        named = ", ".join(lacking[:3]) or str(report["error_msgs"])
        raise ModelError(f"{recipe.folder.name}: the weights do not fit config.json ({named}, {len(lacking)} in all)")
    family = find_family(recipe.family)
    layer = re.compile(rf"(?:^|\.){re.escape(family.layers)}\.(\d+)\.")

    def is_known(name: str) -> bool:
        parts, found = name.split("."), layer.search(name)
        return bool(found and int(found[1]) >= depth) or parts[-1] in _BUFFERS or not family.heads.isdisjoint(parts[:2])

    unknown = sorted(name for name in report["unexpected_keys"] if not is_known(name))
    if unknown:
        raise ModelError(
            f"{recipe.folder.name}: the weights hold {', '.join(unknown[:3])} ({len(unknown)} in all), which family {recipe.family!r} does "
            "not have; this model needs other code than transformers'"
        )


def count_parameters(recipe: ModelRecipe, depth: int) -> int:
    """Return the parameters of the transformer's first `depth` layers and its embeddings; none is allocated."""
    with _quiet_transformers(), file_errors(recipe.folder.name):
        model = _build_empty(recipe, _cut_config(recipe, depth))
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("pooler."))


def sketch_layers(recipe: ModelRecipe, depth: int) -> nn.ModuleList:
    """Build the first `depth` layers as they will be, without weights."""
    with _quiet_transformers():
        model = _build_empty(recipe, _cut_config(recipe, depth))
    layers = model.get_submodule(find_family(recipe.family).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def assert_depth(model: nn.Module, recipe: ModelRecipe, depth: int) -> None:
    """Refuse a module that holds another number of layers than asked for."""
    layers = model.get_submodule(find_family(recipe.family).layers)
    num_built = len(layers) if isinstance(layers, nn.ModuleList) else 0
    if num_built != depth:
        raise ModelError(f"embedding.depth={depth}: {recipe.folder.name!r} was built with {num_built} layers; the depth was ignored")


def _cut_config(recipe: ModelRecipe, depth: int) -> Any:
    config = copy.deepcopy(load_config(recipe))
    for name in find_family(recipe.family).layer_lists:
        setattr(config, name, list(getattr(config, name))[:depth])
    config.num_hidden_layers = depth
    config.use_cache = False
    config.return_dict = True
    return config


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence progress and the report of unexpected weights: they are the layers left out, and what is missing is refused here."""
    verbosity, shows_progress = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_progress:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_head_and_exit(
    spec: EmbeddingSpec, recipe: ModelRecipe, calibration: Calibration | None, rotation_WW: Floats | None
) -> tuple[Head, Exit | None]:
    """Load what follows the layers: the model's own modules, or the map of a calibrated exit, behind which they are not run again."""
    if rotation_WW is None and spec.rotation is not None and calibration is not None:
        rotation_WW = calibration.rotation_WW
    check_rotation(rotation_WW, spec, "embedding.rotate")
    if spec.exit == "native":
        return Head(load_steps(recipe.steps), spec, rotation_WW), None
    if calibration is None or calibration.fingerprint != spec.calibration:
        raise ModelError(f"embedding.calibration: not the artifact of the spec ({spec.calibration}); give every worker the same")
    pool = ExitPooler(spec.pooling, calibration.attention_pooling)
    exit_map = Exit(calibration.maps[spec.depth], pool, recipe.hidden_size)
    return Head(nn.Sequential(), spec.model_copy(update={"layer_norm": False}), rotation_WW), exit_map
