"""Layers → the same compiled by torch, in the versions of torch that differ in how they limit what is compiled."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import config as dynamo_config

MOST_GRAPHS = 32
"""Compiled for one model: three for most, seven for ModernBERT. One more is an error, since it would run uncompiled."""
_MODELS = 16
"""Models of a process that torch 2.11 has graphs for: it counts the graphs of all of them together."""

Forward = Callable[..., Any]


def compile_forward(forward: Forward) -> Forward:
    """Return the method compiled for tensors of any shape; a graph too many raises, where torch's default runs uncompiled."""
    named: dict[str, Any] = {"dynamic": True, "fullgraph": True}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        # by default all models of a process share eight graphs
        named |= {"isolate_recompiles": True, "recompile_limit": MOST_GRAPHS}
    else:
        _raise_limits(MOST_GRAPHS * _MODELS)
    compiled: Forward = torch.compile(forward, **named)
    return compiled


def _raise_limits(num_graphs: int) -> None:
    """Raise torch's own limits, for good: they are read whenever a later batch compiles."""
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(dynamo_config, name, max(num_graphs, getattr(dynamo_config, name)))
