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

LayerPooler = Callable[[int, Tensor, Batch], Tensor]
"""A layer's depth, its states and the batch → what is kept of them."""


class Taps(threading.local):
    """What one thread's batch has given so far: on a CPU, batches run side by side."""

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self.pooled: dict[int, Tensor] = {}

    def start(self, batch: Batch) -> None:
        """Forget the batch before and take up another."""
        self.batch, self.pooled = batch, {}

    def collect(self, depths: Sequence[int]) -> Tensor:
        """Give the batch's pooled states side by side, of shape (B, T·H)."""
        return torch.cat([self.pooled[depth] for depth in depths], dim=1)


@contextmanager
def tap_layers(layers: nn.ModuleList, final_norm: nn.Module, pool: LayerPooler, depths: Sequence[int]) -> Iterator[Taps]:
    """Hook the layers: the state after each tapped one goes through the final norm and is pooled. Depth 0 is what the first is given."""
    taps = Taps()

    def tap(depth: int, hidden: Tensor) -> None:
        assert taps.batch is not None, "a batch is started before it is run"
        taps.pooled[depth] = pool(depth, final_norm(hidden), taps.batch)

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
