"""Feed-forward blocks → the neurons that matter most on a sample, with the block's output weights fitted again on them.

A neuron's weight is the root of its mean square times the length of its output weights. The output weights of those kept minimize the
squared error of the block's output over the sample's tokens: a least-squares fit on second moments. The neurons are chosen first, so that
only theirs are added up: K (K + H) products a token, not I squared.
L = layers, n = tokens, I = neurons of a block, K = those kept, H = hidden size, X = K + 1, the constant last.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
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


def moment_bytes(config: Any, num_layers: int, count: int) -> int:
    """Return the bytes of the second moments of all blocks, and of one of them in float64 and as it is solved."""
    return 4 * (count + 1) * (count + 1 + int(config.hidden_size)) * (num_layers + 6)


class BlockMoments:
    """The neurons to keep of every feed-forward block, and their second moments, over the tokens of a sample that are not padding."""

    def __init__(self, layers: nn.ModuleList, config: Any, count: int) -> None:
        self.outers = [find_block(layer, config)[1] for layer in layers]
        self.places: list[Tensor] = []
        self.moments: list[Tensor] = []
        self._count = count
        self._local, self._lock = threading.local(), threading.Lock()

    def watch(self, pooler: LayerPooler) -> LayerPooler:
        """Return a pooler that also marks the tokens of a batch that are not padding."""

        def start(batch: Batch) -> PoolLayer:
            self._local.own = ~batch.padding
            return pooler(batch)

        return start

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Choose the neurons that matter most in the passes meanwhile."""
        squares = [outer.weight.new_zeros(outer.in_features, dtype=torch.float32) for outer in self.outers]

        def add(number: int, hidden_nI: Tensor, _output_nH: Tensor) -> None:
            squares_I = hidden_nI.float().square().sum(0)
            with self._lock:
                squares[number] += squares_I

        with self._hooked(add):
            yield
        for outer, squares_I in zip(self.outers, squares, strict=True):
            importance_I = squares_I.sqrt() * outer.weight.detach().float().norm(dim=0)
            self.places.append(importance_I.topk(self._count).indices.sort().values)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Add up the second moments of the neurons chosen, with each other and with the block's output, in the passes meanwhile."""
        size = self._count + 1
        self.moments = [outer.weight.new_zeros((size, size + outer.out_features), dtype=torch.float32) for outer in self.outers]

        def add(number: int, hidden_nI: Tensor, output_nH: Tensor) -> None:
            kept_nX = nn.functional.pad(hidden_nI[:, self.places[number]].float(), (0, 1), value=1.0)
            products = kept_nX.T @ torch.cat([kept_nX, output_nH.float()], dim=1)
            with self._lock:
                self.moments[number] += products

        with self._hooked(add):
            yield

    @contextmanager
    def _hooked(self, add: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
        """Call with a block's number, neurons and output for each block and batch."""

        def make_hook(number: int) -> Any:
            return lambda _module, args, output: add(number, args[0][self._local.own], output[self._local.own])

        hooks = [outer.register_forward_hook(make_hook(number)) for number, outer in enumerate(self.outers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def fit(self) -> KeptNeurons:
        """Return the neurons chosen, and their output weights fitted on the moments."""
        fitted = [_refit(*each) for each in zip(self.outers, self.places, self.moments, strict=True)]
        weights, biases = zip(*fitted, strict=True)
        places_LK = torch.stack(self.places).cpu().numpy().astype(np.int32)
        return KeptNeurons(places_LK, np.stack(weights), np.stack(biases))


def _refit(outer: nn.Linear, places_K: Tensor, moments: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the (K, H) output weights and (H,) bias of the neurons kept."""
    weight_XH = outer.weight.detach()[:, places_K].double().cpu().T
    if outer.bias is not None:
        weight_XH = torch.cat([weight_XH, outer.bias.detach().double().cpu()[None]])
    rows = len(weight_XH)
    whole = moments[:rows].double().cpu()
    inner_XX, target_XH = whole[:, :rows], whole[:, len(moments) :]
    ridge = RIDGE * inner_XX.diagonal().mean()
    inner_XX.diagonal().add_(ridge)
    # the ridge draws toward the weights there are, not toward zero
    found_XH = torch.linalg.solve(inner_XX, target_XH + ridge * weight_XH).float().numpy()
    bias_H = found_XH[-1] if outer.bias is not None else np.zeros(found_XH.shape[1], np.float32)
    return found_XH[: len(places_K)].copy(), bias_H.copy()


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
