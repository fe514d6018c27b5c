"""States of every token at some layers, kept on disk: a frozen model that is trained against runs once, not in every epoch.

T = layers, N = tokens, n = tokens of a batch that are no padding, H = hidden size. `hidden` is laid out as its batch is.
"""

import logging
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedder.model.batches import Batch
from embedder.model.taps import LayerPooler, PoolLayer

MOST_OF_DISK = 0.5
"""Share of the free disk that states may take."""

logger = logging.getLogger("embedder")


class TokenStates:
    """A file of (T, N, H) states in bfloat16. Rows are found by their token ids, so equal rows share a place."""

    def __init__(self, path: Path, token_ids: pa.ListArray, layers: Sequence[int], hidden_size: int) -> None:
        self.values, offsets = token_ids.values.to_numpy().astype(np.int64), token_ids.offsets.to_numpy()
        self.starts = {self.values[start:stop].tobytes(): start for start, stop in pairwise(offsets)}
        self.numbers = {layer: number for number, layer in enumerate(layers)}
        shape = len(layers), len(self.values), hidden_size
        self.states_TNH = torch.from_file(str(path), shared=True, size=int(np.prod(shape)), dtype=torch.bfloat16).view(shape)

    def keep(self, pooler: LayerPooler) -> LayerPooler:
        """Return a pooler that also keeps what it is given of these layers."""

        def start(batch: Batch) -> PoolLayer:
            pool, places_n = pooler(batch), self._find(batch)

            def keep_and_pool(layer: int, hidden: Tensor) -> Tensor:
                if layer in self.numbers:
                    self.states_TNH[self.numbers[layer]].index_copy_(0, places_n, hidden[~batch.padding].bfloat16())
                return pool(layer, hidden)

            return keep_and_pool

        return start

    def read(self, batch: Batch) -> dict[int, Tensor]:
        """Return the kept states of a batch by layer; where a token is padding, which no pooling counts, some other token's."""
        places = torch.zeros(batch.padding.shape, dtype=torch.int64)
        places[~batch.padding] = self._find(batch)
        return {layer: self.states_TNH[number][places] for layer, number in self.numbers.items()}

    def _find(self, batch: Batch) -> Tensor:
        """Return the place of each token of a batch that is no padding."""
        values_n = batch.token_ids[~batch.padding].numpy()
        stops = np.cumsum(batch.lengths_B.numpy())
        lengths = np.diff(stops, prepend=0)
        starts = [self.starts[values_n[stop - length : stop].tobytes()] for stop, length in zip(stops, lengths, strict=True)]
        return torch.from_numpy(np.repeat(np.array(starts) - stops + lengths, lengths) + np.arange(len(values_n)))


def open_token_states(folder: Path, token_ids: pa.ListArray, layers: Sequence[int], hidden_size: int) -> TokenStates | None:
    """Make the file of the states of these rows; None where the disk has no room for it."""
    num_bytes, free = 2 * len(token_ids.values) * len(layers) * hidden_size, shutil.disk_usage(folder).free
    if num_bytes > MOST_OF_DISK * free:
        logger.warning(
            "attention: the states of all tokens take %.1f GB, %.1f GB of disk are free; each epoch runs the layers again",
            num_bytes / 1e9,
            free / 1e9,
        )
        return None
    return TokenStates(folder / "token_states", token_ids, layers, hidden_size)
