"""One forward pass → the pooled state at every tapped depth, as it goes by: nothing of the size of all tokens is kept.

B = sequences of a batch, H = hidden size, T = tapped depths. `hidden` is laid out as the batch is.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from embedder.model.batches import Batch

PoolLayer = Callable[[int, Tensor], Tensor]
"""A layer's depth and its states → what is kept of them."""
LayerPooler = Callable[[Batch], PoolLayer]
"""A batch → what pools its states; what all layers need to know of its tokens is read once."""


class Taps(threading.local):
    """Pooled states of one thread's batch: on a CPU, batches run in parallel."""

    def __init__(self, pooler: LayerPooler) -> None:
        self.pooler = pooler
        self.pool: PoolLayer | None = None
        self.pooled: dict[int, Tensor] = {}

    def start(self, batch: Batch) -> None:
        """Forget the batch before and take up another."""
        self.pool, self.pooled = self.pooler(batch), {}

    def collect(self, depths: Sequence[int]) -> Tensor:
        """Return the batch's pooled states side by side, of shape (B, T·H)."""
        return torch.cat([self.pooled[depth] for depth in depths], dim=1)


@contextmanager
def tap_layers(layers: nn.ModuleList, final_norm: nn.Module, pooler: LayerPooler, depths: Sequence[int]) -> Iterator[Taps]:
    """Hook the layers: the state after each tapped one goes through the final norm and is pooled. Depth 0 is what the first is given."""
    taps = Taps(pooler)

    def tap(depth: int, hidden: Tensor) -> None:
        assert taps.pool is not None, "a batch is started before it is run"
        taps.pooled[depth] = taps.pool(depth, final_norm(hidden))

    def before_first(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tap(0, args[0] if args else kwargs["hidden_states"])

    def hook_after(depth: int) -> Any:
        def after(_layer: nn.Module, _args: object, output: Any) -> None:
            tap(depth, output[0] if isinstance(output, tuple) else output)

        return layers[depth - 1].register_forward_hook(after)

    hooks = [layers[0].register_forward_pre_hook(before_first, with_kwargs=True)] if 0 in depths else []
    hooks += [hook_after(depth) for depth in depths if depth]
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()
