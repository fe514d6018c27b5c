"""Files of weights → tensors by name, with a table's rows looked up or an adapter's update added.

V = token ids, R = rows of a table that several ids share.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from embedder.core.errors import ModelError
from embedder.model.files import adapters
from embedder.model.files.adapters import Adapters
from embedder.model.files.checksum import list_weights
from embedder.model.files.families import find_family
from embedder.model.files.json_files import file_errors
from embedder.model.files.model_config import load_config
from embedder.model.files.recipe import ModelRecipe
from embedder.model.pickled import read_pickled

Read = Callable[[Path], dict[str, Tensor]]

_TABLES = ({"embedding.weight"}, {"embeddings"}, {"embeddings", "mapping"}, {"embeddings", "weights"}, {"embeddings", "mapping", "weights"})
"""Names of a table's weights as sentence-transformers and model2vec save them."""
_EMBEDDINGS = "embed_tokens.weight"
_PLACEHOLDERS = ("image_token_id", "video_token_id", "audio_token_id")
_STACKED = ".parametrizations.weight."
_PEFT = "base_model.model."


def sketch_weights(recipe: ModelRecipe) -> dict[str, Tensor]:
    """Return a tensor of each weight's shape, all of one number's memory; only the files' headers are read."""
    sketched = _combine(recipe, recipe.adapters.document if recipe.adapters else None, _sketch_file)
    sketched = _take_text(sketched, recipe, recipe.num_layers)
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in sketched.items()}


def read_combined(recipe: ModelRecipe, adapter: str | None, depth: int) -> dict[str, Tensor] | None:
    """Return the weights of a table, with an adapter merged, or cut to a depth; None if the files hold the weights as they are."""
    if not (recipe.is_static or recipe.adapters or find_family(recipe.family).rows_by_layer):
        return None
    return _take_text(_combine(recipe, adapter, _read_file), recipe, depth)


def read_weight(folder: Path, names: tuple[str, ...]) -> Tensor:
    """Return a folder's weight of one of these names."""
    for path in list_weights(folder):
        tensors = {} if path.suffix == ".json" else _read_file(path)
        for name in names:
            if name in tensors:
                return tensors[name]
    raise ModelError(f"{folder.name}: the weights hold no {names[0]}; download the model again")


def _take_text(tensors: dict[str, Tensor], recipe: ModelRecipe, depth: int) -> dict[str, Tensor]:
    """Return the weights of a model's part for texts, for `depth` layers. Placeholders of images are padding, as in the whole model."""
    family = find_family(recipe.family)
    if family.rows_by_layer is None:
        return tensors
    kept = {name.removeprefix(family.part): tensor for name, tensor in tensors.items()}
    if family.rows_by_layer in kept:
        rows = kept[family.rows_by_layer]
        kept[family.rows_by_layer] = rows[: len(rows) * depth // recipe.num_layers]
    config, table = load_config(recipe), kept.get(_EMBEDDINGS)
    ids = [token_id for name in _PLACEHOLDERS if (token_id := getattr(config, name, None)) is not None and token_id < recipe.vocab_size]
    if table is not None and ids:
        table[ids] = table[config.pad_token_id].clone()
    return kept


def _combine(recipe: ModelRecipe, adapter: str | None, read: Read) -> dict[str, Tensor]:
    paths = [path for path in list_weights(recipe.transformer_folder) if path.suffix != ".json"]
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= read(path)
    if recipe.is_static:
        return _look_up(tensors, paths[0].name)
    if recipe.adapters is None:
        return tensors
    if not recipe.adapters.folders:
        return _merge_stacked(tensors, recipe.adapters, adapter)
    folder = recipe.adapters.folders[adapter]
    return _merge_peft(tensors, read(folder / adapters.WEIGHTS), adapters.read_scale(folder))


def _look_up(found: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the rows by token id: model2vec's are shared by `mapping` (V → R) and scaled by `weights` (V)."""
    if set(found) not in _TABLES:
        raise ModelError(f"{where}: holds {', '.join(sorted(found))}; a static embedding has embedding.weight, or model2vec's names")
    rows = found["embedding.weight"] if "embedding.weight" in found else found["embeddings"]
    if "mapping" in found:
        rows = rows[found["mapping"].long()]
    if "weights" in found:
        rows = rows.float() * found["weights"].float().unsqueeze(-1)
    return {"embedding.weight": rows.contiguous()}


def _merge_stacked(tensors: dict[str, Tensor], found: Adapters, adapter: str | None) -> dict[str, Tensor]:
    """Add the update of one task, as torch's parametrizations name it; an embedding has its factors the other way round."""
    number = found.names.index(str(adapter))
    merged = {name: tensor for name, tensor in tensors.items() if _STACKED not in name}
    for name, weight in tensors.items():
        base, _, kind = name.partition(_STACKED)
        if kind != "original":
            continue
        left, right = ("lora_A", "lora_B") if "embeddings" in base else ("lora_B", "lora_A")
        factors = (tensors[f"{base}{_STACKED}0.{side}"][number].float() for side in (left, right))
        merged[f"{base}.weight"] = weight.float() + torch.matmul(*factors).view(weight.shape) * found.scale
    return merged


def _merge_peft(tensors: dict[str, Tensor], factors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Add an update to the weights of the modules that it names, with or without the prefix under which the weights were saved."""
    merged, left = dict(tensors), set(factors)
    for name in [name for name in factors if name.startswith(_PEFT) and name.endswith(".lora_A.weight")]:
        module, other = name.removeprefix(_PEFT).removesuffix(".lora_A.weight"), name.replace(".lora_A.", ".lora_B.")
        fitting = [each for each in tensors if f".{each}".endswith(f".{module}.weight")]
        if len(fitting) == 1 and other in factors:
            left -= {name, other}
            merged[fitting[0]] = tensors[fitting[0]].float() + factors[other].float() @ factors[name].float() * scale
    if left:
        raise ModelError(f"{adapters.WEIGHTS}: {min(left)} fits no weight ({len(left)} in all); merge it with peft, save the model again")
    return merged


def _read_file(path: Path) -> dict[str, Tensor]:
    with file_errors(path.name):
        return load_file(path) if path.suffix == ".safetensors" else read_pickled(path)


def _sketch_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return {name: tensor.to("meta") for name, tensor in read_pickled(path).items()}
    with safe_open(path, "pt") as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
