"""Low-rank updates in a model's files → their names, files and scale: peft's, one or a folder a task, or stacked in the weights.

Documents and queries may need different ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedder.core.errors import ModelError
from embedder.model.files.json_files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OFF: tuple[Any, ...] = (None, False, "none", [], {})
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "init_lora_weights": (None, True, False, "gaussian"),
    **dict.fromkeys(("bias", "modules_to_save", "lora_bias", "fan_in_fan_out", "use_dora", "use_qalora"), _OFF),
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "layer_replication", "trainable_token_indices", "target_parameters"), _OFF),
}
"""Entries that change more than W + B·A·scale, to the values at which they do not."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """Updates of the weights, of which one is merged when the model is loaded."""

    document: str | None
    query: str | None
    """None: the only one, which has no name."""
    folders: Mapping[str | None, Path] = field(default_factory=dict)
    """Of peft's files; empty if all are stacked in the weights."""
    names: tuple[str, ...] = ()
    """Order in the stacks."""
    scale: float = 1.0
    """Of stacked ones."""


def find_adapters(raw: dict[str, Any], folder: Path) -> Adapters | None:
    """Return the adapters that config.json names, or that lie beside the weights; None if there are none."""
    if raw.get("lora_adaptations"):
        scale = float(raw["lora_alpha"]) / float(raw["lora_rank"])
        names = tuple(map(str, raw["lora_adaptations"]))
        return Adapters(_choose(names, "retrieval.passage"), _choose(names, "retrieval.query"), names=names, scale=scale)
    if raw.get("task_names"):
        name = _choose(tuple(map(str, raw["task_names"])), "retrieval")
        return Adapters(name, name, {name: folder / "adapters" / name})
    if (folder / CONFIG).is_file():
        return Adapters(None, None, {None: folder})
    return None


def _choose(names: tuple[str, ...], name: str) -> str:
    if name not in names:
        raise ModelError(f"config.json: no adapter {name!r} (found: {', '.join(names)}); give a model for retrieval")
    return name


def read_scale(folder: Path) -> float:
    """Return alpha over rank, or over its root, of peft's adapter; ModelError if it changes more than the products of its two factors."""
    config = read_json(folder / CONFIG)
    for name, values in _NEUTRAL.items():
        if config.get(name) not in values:
            raise ModelError(
                f"{CONFIG}: {name}={config.get(name)!r} is not supported; merge it (peft: merge_and_unload), save the model again"
            )
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{CONFIG}: no {WEIGHTS} beside it; other formats are not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ModelError(f"{CONFIG}: r={rank!r}, lora_alpha={alpha!r}: expected numbers; give the adapter as peft saves it")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
