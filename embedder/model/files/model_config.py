"""config.json → transformers' config, translated if the file names remote code that a family of transformers replaces.

The names are those of the repositories' own code, read beside their config.json. Other remote code is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import safe_open

from embedder.core.errors import ModelError
from embedder.model.files.checksum import list_weights
from embedder.model.files.families import find_family
from embedder.model.files.json_files import file_errors, read_json
from embedder.model.files.st_layout import Layout


@dataclass(frozen=True, slots=True)
class RemoteCode:
    """Code in model repositories, and its replacement."""

    model_type: str
    remote_class: str
    """End of `auto_map.AutoModel`."""
    family: str
    """transformers' model_type of the same architecture, unless the translation names another."""
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


def _translate_jina_v3(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of XLM-R with rotary positions, whose adapters are merged when it is loaded."""
    if raw.get("position_embedding_type") != "rotary":
        raise ModelError(f"config.json: position_embedding_type={raw.get('position_embedding_type')!r} is not supported; only rotary is")
    left_out = ("position_embedding_type", "rotary_emb_base", "lora_adaptations", "lora_rank")
    kept = {name: value for name, value in raw.items() if name not in left_out}
    return kept | {"rope_parameters": {"rope_type": "default", "rope_theta": float(raw.get("rotary_emb_base", 10_000.0))}}


def _translate_jina_v5(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of Qwen 3 (small) or EuroBERT (nano); their weights tell if it is the wrong one."""
    return raw | {"model_type": "qwen3" if "use_sliding_window" in raw else "eurobert"}


def _translate_jina_v2(has_more_norms: bool, raw: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of BERT with ALiBi and gated feed-forward blocks."""
    if raw.get("position_embedding_type") != "alibi":
        raise ModelError(f"config.json: position_embedding_type={raw.get('position_embedding_type')!r} is not supported; only alibi is")
    kept = {name: value for name, value in raw.items() if name != "position_embedding_type"}
    return {"feed_forward_type": "original"} | kept | {"has_more_norms": has_more_norms}


REMOTE_CODE = (
    RemoteCode("new", "modeling.NewModel", "gte", _translate_new),
    RemoteCode("llama_bidirec", "llama_bidirectional_model.LlamaBidirectionalModel", "llama", _translate_bidirectional),
    RemoteCode("qwen2", "modeling_qwen.Qwen2Model", "qwen2", _translate_bidirectional),
    RemoteCode("bert", "jina-bert-implementation--modeling_bert.JinaBertModel", "jina_bert", partial(_translate_jina_v2, False)),
    RemoteCode("bert", "jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel", "jina_bert", partial(_translate_jina_v2, True)),
    RemoteCode("xlm-roberta", "modeling_lora.XLMRobertaLoRA", "jina_embeddings_v3", _translate_jina_v3),
    RemoteCode("jina_embeddings_v5", "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model", "qwen3", _translate_jina_v5),
)
"""Alibaba-NLP gte-v1.5 and gte-multilingual, stella_en_400M; NVIDIA's llama embedding models; gte-Qwen2 and the models tuned from it;
jina-embeddings-v2, two kinds; jina-embeddings-v3; jina-embeddings-v5-text."""


_TEXT_PARTS = {"embedding_gemma2": "embedding_gemma2_text"}
"""Models of several modalities, and the families of their parts for texts."""
_PARTS = ("text_config", "vision_config", "audio_config")


def _take_text(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a model's part for texts, with the entries that all parts share."""
    shared = {name: value for name, value in raw.items() if name not in _PARTS}
    return shared | dict(raw.get("text_config") or {}) | {"model_type": _TEXT_PARTS[raw["model_type"]]}


def read_config(layout: Layout) -> dict[str, Any]:
    """Read config.json, translated; {} if there is no file. A static embedding has its sizes in the header of its weights."""
    if layout.is_static:
        return {"model_type": "static_embedding", "num_hidden_layers": 1} | measure_table(layout.transformer_folder)
    raw = read_json(layout.transformer_folder / "config.json")
    known = _find_remote_code(raw)
    if known is None:
        return _take_text(raw) if raw.get("model_type") in _TEXT_PARTS else raw
    with file_errors("config.json"):
        kept = {name: value for name, value in raw.items() if name != "auto_map"}
        return known.translate(kept | {"model_type": known.family})


def is_translated(layout: Layout) -> bool:
    """Return whether config.json names remote code of the list."""
    return not layout.is_static and _find_remote_code(read_json(layout.transformer_folder / "config.json")) is not None


def load_config(layout: Layout) -> Any:
    """Return transformers' config of config.json."""
    from transformers import AutoConfig  # imports torch: seconds

    with file_errors("config.json"):
        raw = read_config(layout)
        own = find_family(raw.get("model_type")).model_class
        if own:
            return find_class(own).config_class.from_dict(raw)
        if not is_translated(layout):
            return AutoConfig.from_pretrained(layout.transformer_folder, trust_remote_code=False, local_files_only=True)
        return type(AutoConfig.for_model(raw["model_type"])).from_dict(raw)


def find_class(path: str) -> Any:
    """Return the class of a family that AutoModel does not build, by its module and name; imports torch: seconds."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def measure_table(folder: Path) -> dict[str, int]:
    """Return vocab_size and hidden_size of a static embedding, from the header of its weights."""
    path = list_weights(folder)[-1]
    with file_errors(path.name):
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        else:
            from embedder.model.pickled import read_pickled  # imports torch: seconds

            shapes = {name: list(tensor.shape) for name, tensor in read_pickled(path).items()}
        num_rows, width = shapes.get("embedding.weight") or shapes["embeddings"]
    return {"vocab_size": shapes["mapping"][0] if "mapping" in shapes else num_rows, "hidden_size": width}


def _find_remote_code(raw: dict[str, Any]) -> RemoteCode | None:
    remote = str((raw.get("auto_map") or {}).get("AutoModel", ""))
    fitting = (each for each in REMOTE_CODE if each.model_type == raw.get("model_type") and remote.endswith(each.remote_class))
    return next(fitting, None)
