"""Refuse files and config entries that would change a model's vectors, and that the checksum or transformers leaves out.

The torch environment is left alone: ONEDNN_DEFAULT_FPMATH_MODE, NVIDIA_TF32_OVERRIDE and TORCH_ALLOW_TF32_CUBLAS_OVERRIDE lower the
precision of float32 products. An encoder's probe vector shows a difference that matters.
"""

import re
from pathlib import Path
from typing import Any

from embedder.core.errors import ModelError
from embedder.model.files.adapters import CONFIG, WEIGHTS
from embedder.model.files.families import Family, is_causal

_ADAPTERS = (CONFIG, WEIGHTS, "adapter_model.bin")
"""transformers merges them if, and only if, the package peft can be imported. Those in one safetensors file are merged here."""
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""transformers prefers a distributed checkpoint to model.safetensors."""
_ELSEWHERE = ("transformers_weights", "configuration_files", "fusion_config", "quantization_config", "compression_config")
"""Entries of config.json that name other weights, another config or other modules, some with the help of further packages."""
_OFF: tuple[Any, ...] = (None, False)
_ONE: tuple[Any, ...] = (None, 1)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("position_embedding_type",), (None, "absolute")),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "rope_theta", "rotary_emb_base"), (None,)),
    **dict.fromkeys(("alibi", "use_alibi", "alibi_starting_size", "use_sliding_window"), _OFF),
    **dict.fromkeys(("sliding_window", "attention_window", "local_attention", "attn_logit_softcapping"), (None,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_every_n_layers"), (None, 0, 1)),
    **dict.fromkeys(("lora_adaptations", "lora_rank", "pruned_heads"), (None, 0, [], {})),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "scale_emb", "partial_rotary_factor"), _ONE),
    **dict.fromkeys(("use_rms_norm", "prenorm", "norm_first", "use_qk_norm", "qk_norm", "rescale_embeddings"), _OFF),
}
"""Entries that change vectors, to the values at which they do not. An entry that the family has of its own is transformers' matter."""
_IGNORED_BY_ALL = frozenset({"attn_logit_softcapping"})
"""Entries that even the families with a field for them do not apply."""
_ROTARY = ("rope", "rotary")
_BY_BATCH = ("longrope", "dynamic")
"""Rotary scalings chosen by the longest sequence of a batch, so that a vector depends on its neighbors."""


def refuse_sources(raw: dict[str, Any], folder: Path, transformer_folder: Path) -> None:
    """Raise ModelError if transformers may load files that the checksum does not cover: named in config.json, or found in a folder."""
    for name in _ELSEWHERE:
        if raw.get(name):
            raise ModelError(f"config.json: {name} is not supported; save the model once, unquantized, with save_pretrained()")
    for each in dict.fromkeys((folder, transformer_folder)):
        merged = (CONFIG, WEIGHTS) if each == transformer_folder and (each / CONFIG).is_file() else ()
        for name in sorted(path.name for path in each.iterdir()):
            if name in _ADAPTERS and name not in merged:
                raise ModelError(
                    f"{name}: such an adapter is not supported; merge it into the weights (peft: merge_and_unload), save the model again"
                )
            if _DISTRIBUTED.fullmatch(name):
                raise ModelError(f"{name}: distributed checkpoints are not supported; save the model once with save_pretrained()")


def refuse_entries(raw: dict[str, Any], config: Any, family: Family) -> None:
    """Raise ModelError if config.json asks for something that transformers' implementation of the family does not compute."""
    _refuse_remote_code(raw, config, family)
    _refuse_other_names(raw, config, family)
    _refuse_values(raw, config, family)
    _refuse_attention(raw, config)


def _refuse_remote_code(raw: dict[str, Any], config: Any, family: Family) -> None:
    """Raise ModelError if the weights belong to code in the model's repository that transformers does not replace."""
    remote = (raw.get("auto_map") or {}).get("AutoModel")
    if remote and (family.remote_class is None or not str(remote).endswith(family.remote_class)):
        raise ModelError(
            f"config.json: auto_map.AutoModel={remote!r} differs from the family {config.model_type!r}; remote code is not run"
        )


def _refuse_other_names(raw: dict[str, Any], config: Any, family: Family) -> None:
    """Raise ModelError if transformers ignored values of a remote-code config and used its own defaults."""
    for other, name in family.other_names.items():
        if other in raw and raw[other] is not None and raw[other] != getattr(config, name):
            raise ModelError(f"config.json: {other}={raw[other]!r} is read by remote code only; rename it to {name}={raw[other]!r}")


def _refuse_values(raw: dict[str, Any], config: Any, family: Family) -> None:
    own = set(type(config)().to_dict()) - (_IGNORED_BY_ALL - family.applies)
    thetas = [each["rope_theta"] for each in _rope_parameters(config) if "rope_theta" in each]
    neutral = {name: values for name, values in _NEUTRAL.items() if name not in own} | dict(family.neutral)
    if thetas:  # a family with rotary positions
        neutral |= {"position_embedding_type": (None, "absolute", *_ROTARY), "rotary_emb_base": (None, *thetas)}
        neutral = {name: values for name, values in neutral.items() if name not in ("rope_scaling", "rope_theta")}
    ignored = [f"{name}={raw[name]!r}" for name, values in neutral.items() if name in raw and raw[name] not in values]
    if ignored:
        raise ModelError(f"config.json: family {config.model_type!r} ignores {', '.join(ignored)}, which would change its vectors")
    activation = raw.get("activation_function")
    if activation and "activation_function" not in neutral and activation != getattr(config, "hidden_act", activation):
        raise ModelError(f"config.json: activation_function={activation!r} is ignored; rename it to hidden_act")
    for parameters in _rope_parameters(config):
        if parameters.get("rope_type") in _BY_BATCH:
            raise ModelError(f"config.json: rope_type={parameters['rope_type']!r} is not supported; a vector would depend on its batch")


def _refuse_attention(raw: dict[str, Any], config: Any) -> None:
    """Raise ModelError for a direction of attention that is not the one computed, or not the same in every batch."""
    settings = [name for name in ("is_decoder", "add_cross_attention") if getattr(config, name, False)]
    if settings and not is_causal(config):
        raise ModelError(f"config.json: {' and '.join(settings)}=true is not supported for family {config.model_type!r}; give an encoder")
    wanted = {"is_causal": raw.get("is_causal"), "use_bidirectional_attention": raw.get("use_bidirectional_attention")}
    is_wanted = {
        "is_causal": wanted["is_causal"] in (None, is_causal(config)),
        "use_bidirectional_attention": wanted["use_bidirectional_attention"] in (None, False, not is_causal(config)),
    }
    for name, holds in is_wanted.items():
        if not holds:
            direction = "causal" if is_causal(config) else "bidirectional"
            raise ModelError(f"config.json: {name}={wanted[name]!r}: attention of family {config.model_type!r} is {direction} here")


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Return the parameters of rotary positions, by kind of layer if they differ; [] without rotary positions."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in found.values() if isinstance(each, dict)]
    return nested or ([found] if found else [])
