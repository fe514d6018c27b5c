"""Layers with rotated heads and a gated feed-forward block → the same in nine kernels: nomic, ModernBERT, Qwen3, Llama and others.

Gemma 3 takes two norms and a sum more. One product gives Q, K and V, another gate and up. T = tokens of a packed batch,
H = hidden size, I = width of the feed-forward block, E = components of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.core.errors import ModelError
from embedder.model.fused import ACTIVATIONS, join_linears, read_activation
from embedder.model.layer_kernels import Norm, add_norm, add_then_norm, gate_rows, norm_rows, read_norm, rotate_heads
from embedder.model.varlen_attention import Segments, attend_segments


class RotaryLayer:
    """The forward pass of one layer, which keeps its modules: their weights are views of the joined ones."""

    def __init__(self, layer: Any, config: Any) -> None:
        is_modernbert = config.model_type == "modernbert"
        own: Any = layer.attn if is_modernbert else layer.self_attn
        mlp: Any = layer.mlp
        heads = [own.Wqkv] if is_modernbert else [own.q_proj, own.k_proj, own.v_proj]
        gates = [mlp.Wi] if is_modernbert else [mlp.gate_proj, mlp.up_proj]
        self.joined, self.gates = join_linears(heads), join_linears(gates)
        self.attended, self.narrow = (own.Wo, mlp.Wo) if is_modernbert else (own.o_proj, mlp.down_proj)
        self.activation = ACTIVATIONS[read_activation(config)]
        self.width: int = own.head_dim
        self.num_heads: int = config.num_attention_heads
        self.num_key_heads = (len(self.joined[0]) // self.width - self.num_heads) // 2
        self.scaling: float = getattr(own, "scaling", self.width**-0.5)
        self.window: int | None = config.sliding_window if config.model_type == "mistral" else getattr(own, "sliding_window", None)
        self.head_weights_2E, self.head_eps = _read_head_norms(own)
        self.norms = _read_norms(layer)

    def __call__(self, hidden_1TH: Tensor, *_args: Any, segments: Segments, position_embeddings: Any, **_kwargs: Any) -> Tensor:
        """Return the states after the layer, (1, T, H)."""
        hidden_TH, norms = hidden_1TH[0], self.norms
        states_TH = norm_rows(hidden_TH, norms["before"]) if "before" in norms else hidden_TH
        attended_TH = self._attend(states_TH, segments, *position_embeddings)
        attended, narrow = self.attended, self.narrow
        if "between" not in norms:  # each block ends in its norm
            hidden_TH = add_norm(attended_TH @ attended.weight.t(), attended.bias, hidden_TH, norms["attended"])
            wide_TI = self._widen(hidden_TH)
            return add_norm(wide_TI @ narrow.weight.t(), narrow.bias, hidden_TH, norms["narrowed"]).unsqueeze(0)
        if "attended" in norms:  # Gemma's blocks begin and end in a norm
            product_TH = norm_rows(attended(attended_TH), norms["attended"])
            hidden_TH, states_TH = add_then_norm(product_TH, None, hidden_TH, norms["between"])
            return hidden_TH.add_(norm_rows(narrow(self._widen(states_TH)), norms["narrowed"])).unsqueeze(0)
        hidden_TH, states_TH = add_then_norm(attended_TH @ attended.weight.t(), attended.bias, hidden_TH, norms["between"])
        hidden_TH.addmm_(self._widen(states_TH), narrow.weight.t())  # into the sum: adding is part of the product
        return (hidden_TH if narrow.bias is None else hidden_TH.add_(narrow.bias)).unsqueeze(0)

    def _attend(self, states_TH: Tensor, segments: Segments, cosines_1TE: Tensor, sines_1TE: Tensor) -> Tensor:
        if cosines_1TE.shape[-1] != self.width:
            raise ModelError(f"{cosines_1TE.shape[-1]} of {self.width} components of a head are rotated; fused layers rotate all")
        joined_TO = functional.linear(states_TH, *self.joined)
        rotate_heads(joined_TO, cosines_1TE[0], sines_1TE[0], self.num_heads, self.num_key_heads, self.head_weights_2E, self.head_eps)
        heads = (self.num_heads, self.num_key_heads, self.num_key_heads)
        query, key, value = joined_TO.view(len(joined_TO), -1, self.width).split_with_sizes(heads, dim=1)
        return attend_segments(query, key, value, segments, self.scaling, self.window).flatten(1)

    def _widen(self, states_TH: Tensor) -> Tensor:
        return gate_rows(functional.linear(states_TH, *self.gates), self.activation)


def _read_norms(layer: Any) -> dict[str, Norm]:
    """Return the norms of a layer by their place: before and behind attention, before and behind the feed-forward block."""
    modules: dict[str, nn.Module]
    if hasattr(layer, "attn_norm"):
        modules = {"before": layer.attn_norm, "between": layer.mlp_norm}
    elif hasattr(layer, "post_mlp_layernorm"):
        modules = {"attended": layer.post_attention_layernorm, "narrowed": layer.post_mlp_layernorm}
    elif hasattr(layer, "pre_feedforward_layernorm"):
        modules = {
            "before": layer.input_layernorm,
            "attended": layer.post_attention_layernorm,
            "between": layer.pre_feedforward_layernorm,
            "narrowed": layer.post_feedforward_layernorm,
        }
    else:
        modules = {"before": layer.input_layernorm, "between": layer.post_attention_layernorm}
    return {place: read_norm(module) for place, module in modules.items() if not isinstance(module, nn.Identity)}


def _read_head_norms(attention: Any) -> tuple[Tensor | None, float]:
    """Return the weights of the norms of queries and keys in float32, (2, E), and their epsilon."""
    if not hasattr(attention, "q_norm"):
        return None, 0.0
    query, key = read_norm(attention.q_norm), read_norm(attention.k_norm)
    return torch.stack([query.weight_H, key.weight_H]).float(), query.eps
