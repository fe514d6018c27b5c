"""Layers of the BERT shape → the same in seven kernels: one product for Q, K, V, GELU within its product, residual and norm in one pass.

GELU is by tanh, which the product's kernel has; in half precision it differs from erf's by less than a rounding. T = tokens of a packed
batch, H = hidden size, I = width of the feed-forward block, A = heads, E = components of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn

from embedder.core.errors import ModelError
from embedder.model.files.families import FAMILIES, find_family
from embedder.model.float8 import Float8Linear, multiply_codes
from embedder.model.varlen_attention import Segments, attend_segments


class FusedLayer:
    """The forward pass of one layer, which keeps its modules: their weights are views of the joined ones."""

    def __init__(self, layer: Any, num_heads: int) -> None:
        own = layer.attention.self
        self.num_heads = num_heads
        self.attended, self.narrow, self.widen = layer.attention.output.dense, layer.output.dense, layer.intermediate.dense
        self.norms: tuple[nn.LayerNorm, nn.LayerNorm] = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
        self.weight_OH, self.bias_O = _join([own.query, own.key, own.value])

    def __call__(self, hidden_1TH: Tensor, *_args: Any, segments: Segments, **_kwargs: Any) -> Tensor:
        """Return the states after the layer, (1, T, H)."""
        from embedder.model.kernels import add_norm

        hidden_TH = hidden_1TH[0]
        num_tokens, width = hidden_TH.shape
        joined_TO = torch.addmm(self.bias_O, hidden_TH, self.weight_OH.t())
        query, key, value = joined_TO.view(num_tokens, 3, self.num_heads, -1).unbind(1)
        attended_TH = attend_segments(query, key, value, segments).view(num_tokens, width)
        first, second = self.norms
        hidden_TH, *_ = add_norm(attended_TH @ self.attended.weight.t(), self.attended.bias, hidden_TH, first.weight, first.bias, first.eps)
        wide_TI = torch._addmm_activation(self.widen.bias, hidden_TH, self.widen.weight.t(), use_gelu=True)
        hidden_TH, *_ = add_norm(wide_TI @ self.narrow.weight.t(), self.narrow.bias, hidden_TH, second.weight, second.bias, second.eps)
        return hidden_TH.unsqueeze(0)


class FusedFloat8Layer:
    """The same in float8: codes and scales come out of the norm and GELU kernels, once for Q, K and V."""

    def __init__(self, layer: Any, num_heads: int) -> None:
        own = layer.attention.self
        self.num_heads = num_heads
        self.attended, self.narrow, self.widen = layer.attention.output.dense, layer.output.dense, layer.intermediate.dense
        self.norms: tuple[nn.LayerNorm, nn.LayerNorm] = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
        self.joined = _join_codes([own.query, own.key, own.value])
        self.no_bias_H = torch.zeros_like(self.norms[0].bias)

    def __call__(self, hidden_1TH: Tensor, *_args: Any, segments: Segments, **_kwargs: Any) -> Tensor:
        """Return the states after the layer, (1, T, H), with their codes for the next one."""
        from embedder.model.kernels import add_norm, encode_rows

        hidden_TH = hidden_1TH[0]
        num_tokens, width = hidden_TH.shape
        codes_TH, scales_T1 = getattr(hidden_1TH, "float8_codes", None) or encode_rows(hidden_TH)
        joined_TO = multiply_codes(codes_TH, scales_T1, *self.joined)
        query, key, value = joined_TO.view(num_tokens, 3, self.num_heads, -1).unbind(1)
        attended_TH = attend_segments(query, key, value, segments).view(num_tokens, width)
        first, second = self.norms
        product_TH = self._multiply(self.attended, encode_rows(attended_TH))
        hidden_TH, *found = add_norm(product_TH, self.no_bias_H, hidden_TH, first.weight, first.bias, first.eps, has_codes=True)
        wide_TI = self._multiply(self.widen, found)
        product_TH = self._multiply(self.narrow, encode_rows(wide_TI, has_gelu=True))
        hidden_TH, *found = add_norm(product_TH, self.no_bias_H, hidden_TH, second.weight, second.bias, second.eps, has_codes=True)
        given_1TH = hidden_TH.unsqueeze(0)
        given_1TH.float8_codes = tuple(found)  # type: ignore[attr-defined]
        return given_1TH

    @staticmethod
    def _multiply(linear: Float8Linear, codes: Any) -> Tensor:
        codes_NI, scales_N1 = codes
        return multiply_codes(codes_NI, scales_N1, linear.codes_OI, linear.scales_1O, linear.bias)


def fuse_layers(layers: nn.ModuleList, config: Any) -> None:
    """Replace the forward pass of every layer; ModelError if they are of another shape."""
    unfusable = find_unfusable(config)
    if unfusable:
        raise ModelError(unfusable)
    for layer in layers:
        is_float8 = isinstance(layer.attention.output.dense, Float8Linear)  # type: ignore[union-attr]
        layer.forward = (FusedFloat8Layer if is_float8 else FusedLayer)(layer, config.num_attention_heads)


def find_unfusable(config: Any) -> str | None:
    """Return the reason why the fused layers do not compute a model; None if they do."""
    if not find_family(config.model_type).fused:
        return f"family {config.model_type!r} has no fused layers; {', '.join(name for name, each in FAMILIES.items() if each.fused)} have"
    if config.hidden_act not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        return f"hidden_act={config.hidden_act!r} (config.json) has no fused layers; gelu has"
    return "is_decoder=true (config.json) has no fused layers" if getattr(config, "is_decoder", False) else None


def _join(linears: list[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Return weights and biases one below the other; the modules keep views of them, so that nothing is held twice."""
    weight_OH, bias_O = torch.cat([each.weight.data for each in linears]), torch.cat([each.bias.data for each in linears])
    for number, linear in enumerate(linears):
        rows = slice(number * linear.out_features, (number + 1) * linear.out_features)
        linear.weight.data, linear.bias.data = weight_OH[rows], bias_O[rows]
    return weight_OH, bias_O


def _join_codes(linears: list[Float8Linear]) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and biases of linear modules with as many rows each, likewise."""
    codes_OI = torch.cat([each.codes_OI.data for each in linears])
    scales_1O = torch.cat([each.scales_1O.data for each in linears], dim=1)
    for number, linear in enumerate(linears):
        rows = slice(number * len(linear.codes_OI), (number + 1) * len(linear.codes_OI))
        linear.codes_OI.data = codes_OI[rows]
    return codes_OI, scales_1O, torch.cat([each.bias.data for each in linears])
