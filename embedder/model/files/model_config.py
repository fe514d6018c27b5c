"""config.json → transformers' config, translated if the file names remote code that a family of transformers replaces.

The names are those of the repositories' own code, read beside their config.json. Other remote code is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedder.core.errors import ModelError
from embedder.model.files.st_layout import file_errors, read_json


@dataclass(frozen=True, slots=True)
class RemoteCode:
    """Code in model repositories, and its replacement."""

    model_type: str
    remote_class: str
    """End of `auto_map.AutoModel`."""
    family: str
    """transformers' model_type of the same architecture."""
    translate: Callable[[dict[str, Any]], dict[str, Any]]


def _translate_new(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of Alibaba's NewModel for gte, whose rotary positions have other names."""
    if raw.get("position_embedding_type", "rope") != "rope":
        raise ModelError(f"config.json: position_embedding_type={raw['position_embedding_type']!r} is not supported; only rope is")
    theta, scaling = float(raw.get("rope_theta", 10_000.0)), raw.get("rope_scaling")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling:
        if scaling.get("type") != "ntk" or set(scaling) - {"type", "factor"}:
            raise ModelError(f"config.json: rope_scaling={scaling!r} is not supported for model_type 'new'; only ntk with a factor is")
        head_dim, factor = raw["hidden_size"] // raw["num_attention_heads"], float(scaling["factor"])
        parameters = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head_dim)}
    kept = {name: value for name, value in raw.items() if name not in ("rope_theta", "rope_scaling", "position_embedding_type")}
    return kept | {"rope_parameters": parameters}


def _translate_bidirectional(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a decoder whose remote code attends in both directions."""
    return raw | {"is_causal": False}


REMOTE_CODE = (
    RemoteCode("new", "modeling.NewModel", "gte", _translate_new),
    RemoteCode("llama_bidirec", "llama_bidirectional_model.LlamaBidirectionalModel", "llama", _translate_bidirectional),
    RemoteCode("qwen2", "modeling_qwen.Qwen2Model", "qwen2", _translate_bidirectional),
)
"""Alibaba-NLP gte-v1.5 and gte-multilingual, stella_en_400M; NVIDIA's llama embedding models; gte-Qwen2 and the models tuned from it."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, translated; {} if there is no file."""
    raw = read_json(folder / "config.json")
    known = _find_remote_code(raw)
    if known is None:
        return raw
    with file_errors("config.json"):
        return known.translate({name: value for name, value in raw.items() if name != "auto_map"}) | {"model_type": known.family}


def is_translated(folder: Path) -> bool:
    """Return whether config.json names remote code of the list."""
    return _find_remote_code(read_json(folder / "config.json")) is not None


def load_config(folder: Path) -> Any:
    """Return transformers' config of config.json."""
    from transformers import AutoConfig  # imports torch: seconds

    with file_errors("config.json"):
        if not is_translated(folder):
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        raw = read_config(folder)
        return type(AutoConfig.for_model(raw["model_type"])).from_dict(raw)


def _find_remote_code(raw: dict[str, Any]) -> RemoteCode | None:
    remote = str((raw.get("auto_map") or {}).get("AutoModel", ""))
    fitting = (each for each in REMOTE_CODE if each.model_type == raw.get("model_type") and remote.endswith(each.remote_class))
    return next(fitting, None)
