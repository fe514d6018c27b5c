"""Feed-forward blocks → the neurons that matter most on a sample, with the block's output weights fitted again on them.

A neuron's weight is the root of its mean square times the length of its output weights. The output weights of those kept minimize the
squared error of the block's output over the sample's tokens: a least-squares fit on their second moments.
L = layers, n = tokens, I = neurons of a block, K = those kept, H = hidden size, X = I + 1, the constant last.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embedder.core.errors import ModelError
from embedder.model.batches import Batch
from embedder.model.files.families import find_family
from embedder.model.neurons import KeptNeurons
from embedder.model.taps import LayerPooler, PoolLayer

MULTIPLE = 64
"""The neurons kept are a multiple of this, as matrix products on GPUs and in float8 want."""
SMALL = 4 * MULTIPLE
"""Blocks of fewer neurons keep any number."""
RIDGE = 1e-3
"""Added to the second moments, as a share of their mean."""


def count_kept(config: Any, share: float) -> int:
    """Return how many neurons of each block a share of them is."""
    size = _size(config)
    return max(1, round(share * size)) if size < SMALL else max(MULTIPLE, round(share * size / MULTIPLE) * MULTIPLE)


def moment_bytes(config: Any, num_layers: int) -> int:
    """Return the bytes of the second moments of all blocks, and of one of them in float64."""
    return 4 * (_size(config) + 1) ** 2 * (num_layers + 4)


class BlockMoments:
    """Second moments of the neurons of every feed-forward block, over the tokens of a sample that are no padding."""

    def __init__(self, layers: nn.ModuleList, config: Any) -> None:
        self.blocks = [find_block(layer, config) for layer in layers]
        size = _size(config) + 1
        device = self.blocks[0][1].weight.device
        self.moments = [torch.zeros(size, size, device=device) for _ in self.blocks]
        self.num_tokens = 0
        self._local, self._lock = threading.local(), threading.Lock()

    def watch(self, pooler: LayerPooler) -> LayerPooler:
        """Return a pooler that also says which tokens of a batch are no padding."""

        def start(batch: Batch) -> PoolLayer:
            self._local.own = ~batch.padding
            with self._lock:
                self.num_tokens += int(self._local.own.sum())
            return pooler(batch)

        return start

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Add up the second moments of all that the blocks compute meanwhile."""
        hooks = [block[1].register_forward_pre_hook(self._make_hook(number)) for number, block in enumerate(self.blocks)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _make_hook(self, number: int) -> Any:
        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            hidden_nX = nn.functional.pad(args[0][self._local.own].float(), (0, 1), value=1.0)
            products_XX = hidden_nX.T @ hidden_nX
            with self._lock:
                self.moments[number] += products_XX

        return add

    def keep(self, count: int) -> KeptNeurons:
        """Return the neurons of each block that matter most, and their output weights."""
        fitted = [
            _refit(outer, moments_XX / self.num_tokens, count) for (_, outer), moments_XX in zip(self.blocks, self.moments, strict=True)
        ]
        places, weights, biases = zip(*fitted, strict=True)
        return KeptNeurons(np.stack(places), np.stack(weights), np.stack(biases))


def _refit(outer: nn.Linear, moments_XX: Tensor, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return places, (K, H) output weights and (H,) bias of the neurons to keep."""
    moments, weight_IH = moments_XX.double().cpu(), outer.weight.detach().double().cpu().T
    importance_I = moments.diagonal()[:-1].sqrt() * weight_IH.norm(dim=1)
    places_K = importance_I.topk(count).indices.sort().values
    whole_XH, rows = weight_IH, places_K
    if outer.bias is not None:
        whole_XH = torch.cat([weight_IH, outer.bias.detach().double().cpu()[None]])
        rows = torch.cat([places_K, torch.tensor([len(weight_IH)])])
    inner_KK = moments[rows][:, rows]
    inner_KK += RIDGE * inner_KK.diagonal().mean() * torch.eye(len(rows), dtype=torch.float64)
    # the ridge draws toward the weights there are, not toward zero
    target_KH = moments[rows][:, : len(whole_XH)] @ whole_XH + RIDGE * moments[rows][:, rows].diagonal().mean() * whole_XH[rows]
    found_KH = torch.linalg.solve(inner_KK, target_KH).float().numpy()
    bias_H = found_KH[count] if outer.bias is not None else np.zeros(found_KH.shape[1], np.float32)
    return places_K.numpy().astype(np.int32), found_KH[:count].copy(), bias_H.copy()


def prune_layers(layers: nn.ModuleList, config: Any, kept: KeptNeurons) -> None:
    """Leave out the other neurons of each layer's block, in place; layers above the given ones are not there."""
    size = _size(config)
    for number, layer in enumerate(layers):
        inner, outer = find_block(layer, config)
        places_K = torch.from_numpy(kept.places_LK[number]).long().to(outer.weight.device)
        for linear in inner:
            rows = torch.cat([places_K + start for start in range(0, linear.out_features, size)])
            _replace(linear, linear.weight[rows], linear.bias if linear.bias is None else linear.bias[rows])
        bias = None if outer.bias is None else torch.from_numpy(kept.bias_LH[number])
        _replace(outer, torch.from_numpy(kept.weight_LKH[number]).T, bias)
        for module in layer.modules():
            if getattr(module, "intermediate_size", None) == size:
                module.intermediate_size = len(places_K)  # type: ignore[assignment]


def _replace(linear: nn.Linear, weight_OI: Tensor, bias_O: Tensor | None) -> None:
    like = linear.weight
    linear.weight = nn.Parameter(weight_OI.to(like.device, like.dtype).contiguous(), requires_grad=False)
    if bias_O is not None:
        linear.bias = nn.Parameter(bias_O.to(like.device, like.dtype).contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = linear.weight.shape


def find_block(layer: nn.Module, config: Any) -> tuple[Sequence[nn.Linear], nn.Linear]:
    """Return the linear modules into and out of a layer's neurons, by their sizes; ModelError if these do not tell.

    One into them may hold two halves, or there are two, one of which gates the other.
    """
    size, hidden_size = _size(config), int(config.hidden_size)
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    outer = [each for each in linears if (each.in_features, each.out_features) == (size, hidden_size)]
    inner = [each for each in linears if each.in_features == hidden_size and each.out_features in (size, 2 * size)]
    shapes = sorted(each.out_features // size for each in inner)
    if len(outer) != 1 or shapes not in ([1], [1, 1], [2]) or size == hidden_size:
        raise ModelError(
            f"calibrate.feed_forward: the layers of family {config.model_type!r} ({size} neurons, {hidden_size} components) have no "
            "feed-forward block of linear modules that could be told from others; leave the setting out"
        )
    return inner, outer[0]


def _size(config: Any) -> int:
    return int(getattr(config, find_family(config.model_type).intermediate_size))
