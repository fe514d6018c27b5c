"""Layers of the BERT shape → the same in seven kernels: one product for Q, K, V, GELU within its product, residual and norm in one pass.

GELU is by tanh, which the product's kernel has; in half precision it differs from erf's by less than a rounding. T = tokens of a packed
batch, H = hidden size, I = width of the feed-forward block, A = heads, E = components of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from embedder.model.float8 import Float8Linear, multiply_codes
from embedder.model.fused import join_linears
from embedder.model.layer_kernels import add_norm, add_norm_encode, encode_rows, read_norm
from embedder.model.varlen_attention import Segments, attend_segments


class FusedLayer:
    """The forward pass of one layer, which keeps its modules: their weights are views of the joined ones."""

    def __init__(self, layer: Any, config: Any) -> None:
        own = layer.attention.self
        self.num_heads = config.num_attention_heads
        self.attended, self.narrow, self.widen = layer.attention.output.dense, layer.output.dense, layer.intermediate.dense
        self.norms = read_norm(layer.attention.output.LayerNorm), read_norm(layer.output.LayerNorm)
        self.joined = join_linears([own.query, own.key, own.value])

    def __call__(self, hidden_1TH: Tensor, *_args: Any, segments: Segments, **_kwargs: Any) -> Tensor:
        """Return the states after the layer, (1, T, H)."""
        hidden_TH = hidden_1TH[0]
        num_tokens, width = hidden_TH.shape
        joined_TO = functional.linear(hidden_TH, *self.joined)
        query, key, value = joined_TO.view(num_tokens, 3, self.num_heads, -1).unbind(1)
        attended_TH = attend_segments(query, key, value, segments).view(num_tokens, width)
        first, second = self.norms
        hidden_TH = add_norm(attended_TH @ self.attended.weight.t(), self.attended.bias, hidden_TH, first)
        wide_TI = torch._addmm_activation(self.widen.bias, hidden_TH, self.widen.weight.t(), use_gelu=True)
        hidden_TH = add_norm(wide_TI @ self.narrow.weight.t(), self.narrow.bias, hidden_TH, second)
        return hidden_TH.unsqueeze(0)


class FusedFloat8Layer:
    """The same in float8: codes and scales come out of the norm and GELU kernels, once for Q, K and V."""

    def __init__(self, layer: Any, config: Any) -> None:
        own = layer.attention.self
        self.num_heads = config.num_attention_heads
        self.attended, self.narrow, self.widen = layer.attention.output.dense, layer.output.dense, layer.intermediate.dense
        self.norms = read_norm(layer.attention.output.LayerNorm), read_norm(layer.output.LayerNorm)
        self.joined = _join_codes([own.query, own.key, own.value])

    def __call__(self, hidden_1TH: Tensor, *_args: Any, segments: Segments, **_kwargs: Any) -> Tensor:
        """Return the states after the layer, (1, T, H), with their codes for the next one."""
        hidden_TH = hidden_1TH[0]
        num_tokens, width = hidden_TH.shape
        codes_TH, scales_T1 = getattr(hidden_1TH, "float8_codes", None) or encode_rows(hidden_TH)
        joined_TO = multiply_codes(codes_TH, scales_T1, *self.joined)
        query, key, value = joined_TO.view(num_tokens, 3, self.num_heads, -1).unbind(1)
        attended_TH = attend_segments(query, key, value, segments).view(num_tokens, width)
        first, second = self.norms
        product_TH = self._multiply(self.attended, encode_rows(attended_TH))
        hidden_TH, *found = add_norm_encode(product_TH, hidden_TH, first)
        wide_TI = self._multiply(self.widen, found)
        product_TH = self._multiply(self.narrow, encode_rows(wide_TI, has_gelu=True))
        hidden_TH, *found = add_norm_encode(product_TH, hidden_TH, second)
        given_1TH = hidden_TH.unsqueeze(0)
        given_1TH.float8_codes = tuple(found)  # type: ignore[attr-defined]
        return given_1TH

    @staticmethod
    def _multiply(linear: Float8Linear, codes: Any) -> Tensor:
        codes_NI, scales_N1 = codes
        return multiply_codes(codes_NI, scales_N1, linear.codes_OI, linear.scales_1O, linear.bias)


def _join_codes(linears: list[Float8Linear]) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and biases of linear modules with as many rows each, likewise."""
    codes_OI = torch.cat([each.codes_OI.data for each in linears])
    scales_1O = torch.cat([each.scales_1O.data for each in linears], dim=1)
    for number, linear in enumerate(linears):
        rows = slice(number * len(linear.codes_OI), (number + 1) * len(linear.codes_OI))
        linear.codes_OI.data = codes_OI[rows]
    return codes_OI, scales_1O, torch.cat([each.bias.data for each in linears])
