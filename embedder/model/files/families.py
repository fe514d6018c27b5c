"""What differs between the supported transformer families, as transformers builds them: one entry a `model_type`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedder.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps what the encoder touches."""

    layers: str
    """Path of the list of layers in the module."""
    final_norm: str | None = None
    """Path of the norm after the last layer; None where a layer ends in its own norm."""
    layer_lists: tuple[str, ...] = ()
    """Config entries with a value a layer, cut with the layers."""
    pooler: bool = False
    """Whether it builds a pooler head unless told not to."""
    attention: str = "sdpa"
    packed: bool = True
    """Whether its attention goes through transformers' interface, so that sequences can be laid end to end."""
    intermediate_size: str = "intermediate_size"
    """Config entry with the width inside of its feed-forward blocks."""
    sliding: bool = False
    """Whether some layers see a window only, so that masks are left to the model."""
    positions_after_pad: bool = False
    """Learned positions start at pad id + 1, so that as many fewer tokens fit."""
    layer_norm: bool = False
    """Default of `embedding.layer_norm`."""
    float16: bool = True
    """False: activations overflow float16 to NaN."""
    other_names: Mapping[str, str] | None = None
    """Names of its original remote-code config, which transformers ignores, by their names in transformers."""


_BERT = Family(layers="encoder.layer", pooler=True)
_ROBERTA = Family(layers="encoder.layer", pooler=True, positions_after_pad=True)
_NOMIC_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "layer_norm_epsilon": "layer_norm_eps",
}

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    # Its attention adds a position bias and has no other implementation.
    "mpnet": Family(layers="encoder.layer", pooler=True, attention="eager", packed=False, positions_after_pad=True),
    "distilbert": Family(layers="transformer.layer", intermediate_size="hidden_dim"),
    "modernbert": Family(layers="layers", final_norm="final_norm", layer_lists=("layer_types",), sliding=True),
    "nomic_bert": Family(layers="layers", pooler=True, layer_norm=True, other_names=_NOMIC_NAMES),
    "qwen3": Family(layers="layers", final_norm="norm", layer_lists=("layer_types",), sliding=True),
    "gemma3_text": Family(layers="layers", final_norm="norm", layer_lists=("layer_types",), sliding=True, float16=False),
}


def find_family(model_type: str | None) -> Family:
    """Give the family of a config's `model_type`; refuse one that is not supported, with those that are."""
    family = FAMILIES.get(model_type or "")
    if family is None:
        raise ModelError(f"config.json: family {model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    return family


def is_causal(config: Any) -> bool:
    """Tell whether a token sees earlier ones only, so that padding on the right cannot reach it."""
    if config.model_type == "gemma3_text":
        return not config.use_bidirectional_attention
    return config.model_type == "qwen3" and getattr(config, "is_causal", True) is not False


def first_position(config: Any) -> int:
    """Position of a sequence's first token."""
    return int(config.pad_token_id) + 1 if find_family(config.model_type).positions_after_pad else 0


def position_limit(config: Any) -> int:
    """Most tokens of one sequence that the model has positions for."""
    return int(config.max_position_embeddings) - first_position(config)
