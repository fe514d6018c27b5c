"""Differences between the supported transformer families, as transformers builds them: one entry per `model_type`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedder.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Family:
    """Everything that the encoder needs to know about a family; the defaults are those of BERT's descendants."""

    layers: str
    """Path of the list of layers in the module."""
    final_norm: str | None = None
    """Path of the norm after the last layer; None if each layer ends in its own norm."""
    layer_lists: tuple[str, ...] = ()
    """Config entries with one value per layer, truncated with the layers."""
    pooler: bool = False
    """Whether transformers builds a pooler head by default."""
    attention: str = "sdpa"
    packed: bool = True
    """Whether attention uses transformers' interface, which packed sequences need."""
    is_causal: Callable[[Any], bool] = lambda _: False
    """Config → whether a token attends to earlier tokens only, so that padding on the right cannot affect it."""
    sliding: bool = False
    """Whether some layers attend within a window, so that the model builds the masks."""
    positions_after_pad: bool = False
    """Learned positions start at pad id + 1, which leaves fewer for tokens."""
    intermediate_size: str = "intermediate_size"
    """Config entry with the inner width of the feed-forward blocks."""
    layer_norm: bool = False
    """Default of `embedding.layer_norm`."""
    float16: bool = True
    """False: activations overflow float16 to NaN."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Names in the original remote-code config, which transformers ignores, to transformers' names."""


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
    # its attention adds a position bias and has no other implementation
    "mpnet": Family(layers="encoder.layer", pooler=True, attention="eager", packed=False, positions_after_pad=True),
    "distilbert": Family(layers="transformer.layer", intermediate_size="hidden_dim"),
    "modernbert": Family(layers="layers", final_norm="final_norm", layer_lists=("layer_types",), sliding=True),
    "nomic_bert": Family(layers="layers", pooler=True, layer_norm=True, other_names=_NOMIC_NAMES),
    "qwen3": Family(
        layers="layers",
        final_norm="norm",
        layer_lists=("layer_types",),
        is_causal=lambda config: getattr(config, "is_causal", True) is not False,
        sliding=True,
    ),
    "gemma3_text": Family(
        layers="layers",
        final_norm="norm",
        layer_lists=("layer_types",),
        is_causal=lambda config: not config.use_bidirectional_attention,
        sliding=True,
        float16=False,
    ),
}


def find_family(model_type: str | None) -> Family:
    """Return the family of a config's `model_type`; ModelError lists the supported ones."""
    family = FAMILIES.get(model_type or "")
    if family is None:
        raise ModelError(f"config.json: family {model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    return family


def is_causal(config: Any) -> bool:
    """Return whether a token attends to earlier tokens only."""
    return find_family(config.model_type).is_causal(config)


def first_position(config: Any) -> int:
    """Return the position of a sequence's first token."""
    return int(config.pad_token_id) + 1 if find_family(config.model_type).positions_after_pad else 0


def position_limit(config: Any) -> int:
    """Return the largest number of tokens in a sequence."""
    return int(config.max_position_embeddings) - first_position(config)
