"""Differences between the supported transformer families, as transformers builds them: one entry per `model_type`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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
    """Whether attention uses transformers' interface without a bias, which packed sequences need."""
    is_causal: Callable[[Any], bool] = lambda _: False
    """Config → whether a token attends to earlier tokens only, so that padding on the right cannot affect it."""
    sliding: bool = False
    """Whether some layers attend within a window, so that the model builds the masks."""
    positions_after_pad: bool = False
    """Learned positions start at pad id + 1, which leaves fewer for tokens."""
    intermediate_size: str = "intermediate_size"
    """Config entry with the inner width of the feed-forward blocks."""
    fused: Literal["bert", "rotary"] | None = None
    """Shape of the layers, if there are fused kernels for it; rotary: rotated heads and a gated feed-forward block."""
    float16: bool = True
    """False: activations overflow float16 to NaN."""
    float8: bool = True
    """False: the layers share weights, or read the dtype of their own, which float8 replaces."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Names in the original remote-code config, which transformers ignores, to transformers' names."""
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Entries of that config without a name in transformers, to the values that its implementation computes."""
    applies: frozenset[str] = frozenset()
    """Entries that transformers ignores for other families that have a field for them."""
    model_class: str | None = None
    """Module and class to build, if it is not AutoModel's."""
    projection: tuple[str, str] | None = None
    """Path of a linear module without bias after the final norm, and config entry with its width: run after pooling, as a Dense."""
    rows_by_layer: str | None = None
    """Name of a weight with rows of every layer in turn, truncated with the layers."""
    part: str = ""
    """Prefix of the weights in a model of several modalities, whose part for texts the family is."""
    shared_layers: bool = False
    """Whether one layer is run `num_hidden_layers` times."""
    remote_class: str | None = None
    """Class in `auto_map.AutoModel` that transformers' own implementation replaces."""
    heads: frozenset[str] = frozenset({"pooler", "cls", "lm_head", "classifier", "qa_outputs"})
    """Modules after the hidden states, whose weights are left out: no vector depends on them."""


_BERT = Family(layers="encoder.layer", pooler=True, fused="bert")
_ROBERTA = Family(layers="encoder.layer", pooler=True, positions_after_pad=True, fused="bert")
_GENERATION_HEADS = frozenset({"lm_head", "score", "classifier"})


def _reads_backwards(config: Any) -> bool:
    """Return whether a decoder is causal, which `is_causal` false in its config makes bidirectional."""
    return getattr(config, "is_causal", True) is not False


_DECODER = Family(layers="layers", final_norm="norm", is_causal=_reads_backwards, heads=_GENERATION_HEADS, fused="rotary")
_WINDOWED_DECODER = replace(_DECODER, layer_lists=("layer_types",), sliding=True)
_NOMIC_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "layer_norm_epsilon": "layer_norm_eps",
}
_NOMIC_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "activation_function": ("swiglu",),
    "rotary_emb_fraction": (1,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "rotary_scaling_factor": (None, 1),
    **dict.fromkeys(("num_experts", "moe_every_n_layers"), (None, 0)),
    **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), (False,)),
    **dict.fromkeys(("prenorm", "parallel_block", "use_rms_norm", "causal", "scale_attn_by_inverse_layer_idx"), (False,)),
    "scale_attn_weights": (True,),
}
_NEW_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "layer_norm_type": ("layer_norm",),
    "pack_qkv": (True,),
    **dict.fromkeys(("logn_attention_scale", "logn_attention_clip1"), (False,)),
}

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    # its attention adds a position bias and has no other implementation
    "mpnet": Family(layers="encoder.layer", pooler=True, attention="eager", packed=False, positions_after_pad=True),
    "distilbert": Family(
        layers="transformer.layer",
        intermediate_size="hidden_dim",
        heads=frozenset({"vocab_transform", "vocab_layer_norm", "vocab_projector", "pre_classifier", "classifier", "qa_outputs"}),
    ),
    "modernbert": Family(
        layers="layers",
        final_norm="final_norm",
        layer_lists=("layer_types",),
        sliding=True,
        heads=frozenset({"head", "decoder", "classifier", "qa_outputs"}),
        fused="rotary",
    ),
    "nomic_bert": Family(
        layers="layers",
        pooler=True,
        other_names=_NOMIC_NAMES,
        neutral=_NOMIC_NEUTRAL,
        remote_class="modeling_hf_nomic_bert.NomicBertModel",
        fused="rotary",
    ),
    "qwen2": _WINDOWED_DECODER,
    "qwen3": _WINDOWED_DECODER,
    "llama": _DECODER,
    "ministral3": replace(_DECODER, sliding=True, fused=None),  # it scales queries by their positions
    "mistral": replace(_DECODER, sliding=True),
    # transformers refuses sdpa for it, which has no soft cap
    "gemma2": replace(
        _WINDOWED_DECODER, attention="eager", packed=False, float16=False, applies=frozenset({"attn_logit_softcapping"}), fused=None
    ),
    "gemma3_text": Family(
        layers="layers",
        final_norm="norm",
        layer_lists=("layer_types",),
        is_causal=lambda config: not config.use_bidirectional_attention,
        sliding=True,
        float16=False,
        heads=_GENERATION_HEADS,
        fused="rotary",
    ),
    "embedding_gemma2_text": Family(
        layers="layers",
        final_norm="norm",
        layer_lists=("layer_types",),
        sliding=True,
        float16=False,
        projection=("embedding_projection", "embedding_dim"),
        rows_by_layer="ple.per_layer_model_projection.weight",
        part="language_model.",
        model_class="transformers.EmbeddingGemma2TextModel",
        heads=frozenset({"vision_tower", "embed_vision", "audio_tower", "embed_audio"}),
    ),
    "eurobert": Family(layers="layers", final_norm="norm", heads=_GENERATION_HEADS, fused="rotary"),
    "jina_embeddings_v3": Family(layers="layers", pooler=True),
    "gte": Family(
        layers="layers", neutral=_NEW_NEUTRAL, heads=frozenset({"pooler", "lm_head", "classifier", "qa_outputs"}), fused="rotary"
    ),
    # its attention adds the bias of relative positions, which the first layer has
    "t5": Family(
        layers="encoder.block",
        final_norm="encoder.final_layer_norm",
        packed=False,
        intermediate_size="d_ff",
        float16=False,
        float8=False,
        model_class="transformers.T5EncoderModel",
        heads=frozenset({"decoder", "lm_head"}),
    ),
    "albert": Family(
        layers="encoder.albert_layer_groups",
        pooler=True,
        shared_layers=True,
        float8=False,
        neutral=dict.fromkeys(("inner_group_num", "num_hidden_groups"), (1,)),
        heads=frozenset({"pooler", "predictions", "sop_classifier", "classifier", "qa_outputs"}),
    ),
    # attention adds the bias of distances
    "jina_bert": Family(
        layers="encoder.layer",
        packed=False,
        neutral={"feed_forward_type": ("geglu",)},
        model_class="embedder.model.jina_bert.JinaBertModel",
    ),
    "static_embedding": Family(layers="layers", float8=False, model_class="embedder.model.static_embedding.StaticEmbeddingModel"),
    "electra": Family(layers="encoder.layer", heads=frozenset({"discriminator_predictions", "generator_predictions", "generator_lm_head"})),
    # the convolution after the first layer, which some have, is not part of that layer
    "deberta-v2": Family(
        layers="encoder.layer",
        attention="eager",
        packed=False,
        neutral={"conv_kernel_size": (None, 0)},
        heads=frozenset({"pooler", "cls", "lm_predictions", "mask_predictions", "classifier", "qa_outputs"}),
    ),
}

LINEAR = ("mean", "cls", "last", "weightedmean", "mean_sqrt_len")
"""Poolings before which a linear map gives the same as behind them."""

_UNSUPPORTED = {
    "qwen3_vl": "it reads every text in a chat template, beside images",
    "lfm2": "transformers' convolutions see earlier tokens only, those of LFM2.5-Embedding's remote code later ones too",
    "bidirectional_pplx_qwen3": "a module of its remote code makes its vectors int8",
}
"""Families of much used embedding models, to what transformers or this encoder does not compute."""

RELATIVE_POSITIONS = 512
"""Limit of a family with relative positions whose config states none: T5's, in training."""


def find_family(model_type: str | None) -> Family:
    """Return the family of a config's `model_type`; ModelError names the reason if it is known, and the supported ones."""
    family = FAMILIES.get(model_type or "")
    if family is None:
        reason = f" ({_UNSUPPORTED[model_type]})" if model_type in _UNSUPPORTED else ""
        raise ModelError(f"config.json: family {model_type!r} is not supported{reason}; supported are {', '.join(FAMILIES)}")
    return family


def is_causal(config: Any) -> bool:
    """Return whether a token attends to earlier tokens only."""
    return find_family(config.model_type).is_causal(config)


def first_position(config: Any) -> int:
    """Return the position of a sequence's first token."""
    return int(config.pad_token_id) + 1 if find_family(config.model_type).positions_after_pad else 0


def position_limit(config: Any) -> int:
    """Return the largest number of tokens in a sequence."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or RELATIVE_POSITIONS
    return int(limit) - first_position(config)
