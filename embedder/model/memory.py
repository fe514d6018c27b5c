"""Free memory of a device and the shape of a model → the token budget of a forward pass; memory of this machine."""

import os
from pathlib import Path
from typing import Any

import torch

from embedder.model.files.families import find_family, position_limit

MOST_TOKENS = 65_536
"""Enough to keep any current device busy."""
LEAST_TOKENS = 1024
SAFETY = 0.5
"""Share of the free memory to use; the rest is for fragmentation, workspaces and a unit's results."""


def plan_token_budget(free_bytes: int, config: Any, dtype_bytes: int) -> int:
    """Return the number of tokens whose states fit; if they do not, the encoder warns and halves the budget."""
    fitting = int(free_bytes * SAFETY) // bytes_per_token(config, dtype_bytes)
    return min(MOST_TOKENS, max(LEAST_TOKENS, fitting // LEAST_TOKENS * LEAST_TOKENS))


def bytes_per_token(config: Any, dtype_bytes: int) -> int:
    """Return the bytes of a token at the widest point of a layer; no layer keeps its states.

    Eight states around attention (input, norm, queries, keys, values, two rotated, output), three in a gated feed-forward block, and
    the state pooled in float32.
    """
    family = find_family(config.model_type)
    heads = int(config.num_attention_heads)
    attention_width = heads * max(int(getattr(each, "head_dim", None) or config.hidden_size // heads) for each in config.per_layer_config)
    # inputs of all layers are made at once, and normalized in float32
    by_layer_width = int(config.num_hidden_layers) * int(getattr(config, "hidden_size_per_layer_input", None) or 0)
    states = 8 * max(int(config.hidden_size), attention_width, by_layer_width) + 3 * int(getattr(config, family.intermediate_size))
    # attention with a bias, or eager, holds scores, softmax and mask with bias, each as wide as the sequence, per head
    scores = 0 if family.packed else 3 * heads * position_limit(config)
    return (states + scores) * dtype_bytes + 2 * 4 * int(config.hidden_size)


def host_memory_bytes() -> int:
    """Return the memory of this machine, or of the container if it has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def free_device_bytes(device: torch.device, share: float) -> int:
    """Return the free bytes of this share of the device; other actors may use the rest."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return int(min(free_bytes, total_bytes * share - torch.cuda.memory_allocated(device)))
