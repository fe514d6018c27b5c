"""Pooled states of the layers and vectors of the full model, for a sample → maps from states to vectors, by ridge regression.

N = chunks, F = features (poolings of layers, side by side), K = blocks of features, W = width of the full model's vectors.
Hoerl and Kennard, Ridge Regression: Biased Estimation for Nonorthogonal Problems, 1970: the map M minimizes
‖Y − Z·M‖² + λ·N·‖M‖² over standardized features Z. The sums ZᵀZ and ZᵀY are sufficient.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedder.core.quantization import Floats
from embedder.core.rotation import Doubles
from embedder.model.exits import NUM_POOLINGS

Columns = npt.NDArray[np.int64]
Pair = tuple[int, int]

MOST_FEATURES = 12_288
"""Features of one map. The matrix of this many features takes 1.2 GB, and fitting more takes a sample of several times as many chunks."""
LEAST_DEVIATION = 1e-6
"""Smallest standard deviation of a feature: an almost constant feature is not scaled up to unit variance."""


def choose_layers(depth: int, block: int) -> tuple[int, ...]:
    """Return the layers that the map at a depth reads: all from 0 up, or as many as MOST_FEATURES allows, evenly spaced."""
    count = max(2, MOST_FEATURES // block)
    if depth + 1 <= count:
        return tuple(range(depth + 1))
    return tuple(sorted({round(depth * number / (count - 1)) for number in range(count)}))


@dataclass(frozen=True, slots=True)
class Features:
    """Position of each depth's features among those of all tapped layers, which hold a block each."""

    layers: Mapping[int, tuple[int, ...]]
    """By depth: the layers that its map reads."""
    tapped: tuple[int, ...]
    hidden_size: int

    @property
    def block(self) -> int:
        """Features per layer."""
        return NUM_POOLINGS * self.hidden_size

    def blocks(self, depth: int) -> list[int]:
        """Return the positions in `tapped` of the layers that a depth's map reads, in rising order."""
        return [self.tapped.index(layer) for layer in self.layers[depth]]

    def columns(self, depth: int) -> Columns:
        """Return the columns of a depth's features."""
        return np.concatenate([np.arange(number * self.block, (number + 1) * self.block) for number in self.blocks(depth)])

    @property
    def pairs(self) -> frozenset[Pair]:
        """Positions in `tapped` of each two layers that some map reads together."""
        numbers = [self.blocks(depth) for depth in self.layers]
        return frozenset((first, second) for each in numbers for first in each for second in each if first <= second)

    @property
    def sum_bytes(self) -> int:
        """Memory for the sums of a sample, and for solving the largest map: its matrix, the term subtracted from it, and a copy."""
        largest = max((len(each) * self.block for each in self.layers.values()), default=0)
        return 8 * (len(self.pairs) * self.block**2 + 3 * largest**2)


@dataclass(frozen=True, slots=True)
class AffineMap:
    """An affine map: features @ weight_FW + bias_W."""

    weight_FW: Floats  # noqa: N815
    bias_W: Floats  # noqa: N815

    def apply(self, features_NF: Floats) -> Floats:
        """Return the mapped vectors, not normalized."""
        return features_NF @ self.weight_FW + self.bias_W


class Sums:
    """Sufficient statistics of a sample, in float64: batches may come in any number, size and order.

    Products of features are summed only for pairs of blocks that some map reads together: for 24 layers of 1,024, 9 GB instead of 77.
    """

    def __init__(self, num_blocks: int, block: int, width: int, pairs: Iterable[Pair] = ((0, 0),)) -> None:
        self.num_rows = 0
        self.features_KF = np.zeros((num_blocks, block))
        self.vectors_W = np.zeros(width)
        self.grams = {pair: np.zeros((block, block)) for pair in pairs}
        """Products of the features of two blocks, the lower block first."""
        self.cross_KFW = np.zeros((num_blocks, block, width))

    def add(self, features_NF: Floats, vectors_NW: Floats) -> None:
        """Add a batch of normalized features and the vectors to map them to."""
        features, vectors = features_NF.astype(np.float64), vectors_NW.astype(np.float64)
        blocks = np.hsplit(features, len(self.features_KF))
        self.num_rows += len(features)
        self.features_KF += features.sum(axis=0).reshape(self.features_KF.shape)
        self.vectors_W += vectors.sum(axis=0)
        for first, second in self.grams:
            self.grams[first, second] += blocks[first].T @ blocks[second]
        self.cross_KFW += (features.T @ vectors).reshape(self.cross_KFW.shape)

    def mean_and_deviation(self, blocks: Sequence[int]) -> tuple[Doubles, Doubles]:
        """Return the mean and the standard deviation of the features of these blocks."""
        mean_F = self.features_KF[blocks].ravel() / self.num_rows
        squares_F = np.concatenate([self.grams[number, number].diagonal() for number in blocks])
        return mean_F, np.sqrt(np.maximum(squares_F / self.num_rows - mean_F**2, LEAST_DEVIATION**2))

    def fit(self, blocks: Sequence[int], strengths: Sequence[float]) -> Iterator[tuple[float, AffineMap]]:
        """Yield the map of the features of these blocks, which rise, at each ridge strength λ."""
        mean_F, deviation_F = self.mean_and_deviation(blocks)
        mean_W = self.vectors_W / self.num_rows
        grams = [[self.grams[row, column] if row <= column else self.grams[column, row].T for column in blocks] for row in blocks]
        covariance_FF = np.block(grams)
        covariance_FF /= self.num_rows
        covariance_FF -= np.outer(mean_F, mean_F)
        covariance_FF /= deviation_F
        covariance_FF /= deviation_F[:, None]
        cross_FW = (self.cross_KFW[blocks].reshape(len(mean_F), -1) / self.num_rows - np.outer(mean_F, mean_W)) / deviation_F[:, None]
        variance_F = covariance_FF.diagonal().copy()
        for strength in strengths:
            np.fill_diagonal(covariance_FF, variance_F + strength)
            weight_FW = np.linalg.solve(covariance_FF, cross_FW) / deviation_F[:, None]
            # the map includes the standardization: one product and one sum per chunk
            yield strength, AffineMap(weight_FW.astype(np.float32), (mean_W - mean_F @ weight_FW).astype(np.float32))


class Moments:
    """Number, mean and covariance of the vectors of a sample, in float64."""

    def __init__(self, width: int) -> None:
        self.num_rows = 0
        self.vectors_W, self.products_WW = np.zeros(width), np.zeros((width, width))

    def add(self, vectors_NW: Floats) -> None:
        """Add a batch."""
        vectors = vectors_NW.astype(np.float64)
        self.num_rows += len(vectors)
        self.vectors_W += vectors.sum(axis=0)
        self.products_WW += vectors.T @ vectors

    @property
    def covariance_WW(self) -> Doubles:  # noqa: N802
        """Covariance of the vectors."""
        mean_W = self.vectors_W / self.num_rows
        covariance_WW: Doubles = self.products_WW / self.num_rows - np.outer(mean_W, mean_W)
        return covariance_WW
