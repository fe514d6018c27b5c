"""Which layers have fused kernels, and the replacement of their forward passes. O = components that come out, H = components that go in."""

from typing import Any

import torch
from torch import Tensor, nn

from embedder.core.errors import ModelError
from embedder.model.files.families import FAMILIES, find_family
from embedder.model.float8 import Float8Linear

ACTIVATIONS = {"silu": 0, "swish": 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2}
"""Names in a config to the numbers of the kernel that gates: SiLU, GELU by erf, GELU by tanh. Layers of BERT's shape have GELU alone."""


def fuse_layers(layers: nn.ModuleList, config: Any) -> None:
    """Replace the forward pass of every layer; ModelError if they are of another shape."""
    unfusable = find_unfusable(layers, config)
    if unfusable:
        raise ModelError(unfusable)
    from embedder.model.fused_bert import FusedFloat8Layer, FusedLayer  # these need Triton
    from embedder.model.fused_rotary import RotaryLayer

    is_bert = find_family(config.model_type).fused == "bert"
    build = (FusedFloat8Layer if has_float8(layers) else FusedLayer) if is_bert else RotaryLayer
    fused = [build(layer, config) for layer in layers]
    for layer, forward in zip(layers, fused, strict=True):
        layer.forward = forward


def find_unfusable(layers: nn.ModuleList, config: Any) -> str | None:
    """Return the reason why the fused layers do not compute a model; None if they do."""
    shape = find_family(config.model_type).fused
    if shape is None:
        return f"family {config.model_type!r} has no fused layers; {', '.join(name for name, each in FAMILIES.items() if each.fused)} have"
    names = [name for name, number in ACTIVATIONS.items() if number or shape == "rotary"]
    if (found := read_activation(config)) not in names:
        return f"activation {found!r} (config.json) has no fused layers; {', '.join(names)} have"
    if shape != "bert" and has_float8(layers):
        return f"embedding.float8: family {config.model_type!r} has no fused layers in float8; compute.backend=compiled runs it"
    return "is_decoder=true (config.json) has no fused layers" if getattr(config, "is_decoder", False) else None


def read_activation(config: Any) -> str:
    """Return the name of the activation of the feed-forward blocks."""
    return str(config.hidden_activation if hasattr(config, "hidden_activation") else config.hidden_act)


def has_float8(layers: nn.ModuleList) -> bool:
    """Return whether linear modules are in float8."""
    return any(isinstance(module, Float8Linear) for module in layers.modules())


def join_linears(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Return weights and biases one below the other; the modules keep views of them, so that nothing is held twice."""
    weight_OH = torch.cat([each.weight.data for each in linears])
    biases = [each.bias.data for each in linears if each.bias is not None]
    assert len(biases) in (0, len(linears)), "all have a bias, or none"
    bias_O = torch.cat(biases) if biases else None
    start = 0
    for linear in linears:
        rows = slice(start, start := start + linear.out_features)
        linear.weight.data = weight_OH[rows]
        if bias_O is not None:
            linear.bias.data = bias_O[rows]
    return weight_OH, bias_O
