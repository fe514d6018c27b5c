"""States of the layers and vectors of the full model, a sample of each → maps from the one to the other, by ridge regression.

N = chunks, F = features (poolings of layers, side by side), W = width of the full model's vectors.
Hoerl and Kennard, Ridge Regression: Biased Estimation for Nonorthogonal Problems, 1970: the map M minimises
‖Y − Z·M‖² + λ·N·‖M‖² over standardised features Z; the sums ZᵀZ and ZᵀY are all that it needs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedder.model.exits import NUM_POOLINGS

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Concurrency = npt.NDArray[np.int64]
Pair = tuple[int, int]

MOST_FEATURES = 12_288
"""Of one map: its matrix holds 1.2 GB, and a sample must be larger than this to say much."""
LEAST_DEVIATION = 1e-6
"""Of a feature: one that hardly varies over the sample is not blown up to unit variance."""


def choose_layers(depth: int, block: int) -> tuple[int, ...]:
    """Choose the layers that the map at a depth reads: all from 0 up, or of a wide model as many as MOST_FEATURES allows."""
    count = max(2, MOST_FEATURES // block)
    if depth + 1 <= count:
        return tuple(range(depth + 1))
    return tuple(sorted({round(depth * number / (count - 1)) for number in range(count)}))


@dataclass(frozen=True, slots=True)
class Features:
    """Where each depth's features are among those tapped."""

    layers: Mapping[int, tuple[int, ...]]
    """By depth: the layers its map reads."""
    tapped: tuple[int, ...]
    hidden_size: int

    def places(self, depth: int) -> Concurrency:
        """Give the columns of a depth's features; they rise."""
        starts = [self.tapped.index(layer) * self.block for layer in self.layers[depth]]
        return np.concatenate([np.arange(start, start + self.block) for start in starts])

    @property
    def block(self) -> int:
        """Features of a layer."""
        return NUM_POOLINGS * self.hidden_size

    @property
    def pairs(self) -> frozenset[Pair]:
        """Layers that some map reads together, by their number among those tapped."""
        numbers = [[self.tapped.index(layer) for layer in each] for each in self.layers.values()]
        return frozenset((first, second) for each in numbers for first in each for second in each if first <= second)

    @property
    def sum_bytes(self) -> int:
        """What the sums of a sample take, and then the solving of the largest map: its matrix, what is taken off it, and a copy."""
        largest = max((len(each) * self.block for each in self.layers.values()), default=0)
        return 8 * (len(self.pairs) * self.block**2 + 3 * largest**2)


@dataclass(frozen=True, slots=True)
class Line:
    """An affine map: features @ weight_FW + bias_W."""

    weight_FW: Floats  # noqa: N815
    bias_W: Floats  # noqa: N815

    def apply(self, features_NF: Floats) -> Floats:
        """Give the mapped vectors, of no certain length."""
        return features_NF @ self.weight_FW + self.bias_W


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of features over a sample."""

    mean_F: Doubles  # noqa: N815
    deviation_F: Doubles  # noqa: N815


class Sums:
    """Sufficient statistics of a sample, in float64: batches may come in any number, size and order.

    Of the products of features with each other there are only those of blocks that some map reads together: of 24 layers of
    1,024 these are 9 GB in place of 77.
    """

    def __init__(self, num_features: int, width: int, pairs: Iterable[Pair] = ((0, 0),), block: int | None = None) -> None:
        self.num_rows = 0
        self.block = block or num_features
        self.features_F = np.zeros(num_features)
        self.vectors_W = np.zeros(width)
        self.grams = {pair: np.zeros((self.block, self.block)) for pair in pairs}
        """Of the features of two blocks, the first before the second."""
        self.cross_FW = np.zeros((num_features, width))
        self.products_WW = np.zeros((width, width))

    def add(self, features_NF: Floats, vectors_NW: Floats) -> None:
        """Take in a batch of normalised features and the vectors they should become."""
        features, vectors = features_NF.astype(np.float64), vectors_NW.astype(np.float64)
        self.num_rows += len(features)
        self.features_F += features.sum(axis=0)
        self.vectors_W += vectors.sum(axis=0)
        for first, second in self.grams:
            self.grams[first, second] += self.of_block(features, first).T @ self.of_block(features, second)
        self.cross_FW += features.T @ vectors
        self.products_WW += vectors.T @ vectors

    @property
    def covariance_WW(self) -> Doubles:  # noqa: N802
        """Of the vectors."""
        mean_W = self.vectors_W / self.num_rows
        covariance_WW: Doubles = self.products_WW / self.num_rows - np.outer(mean_W, mean_W)
        return covariance_WW

    def spread(self, places: Concurrency) -> "Spread":
        """Say where the features at these places lie."""
        mean_F = self.features_F[places] / self.num_rows
        squares_F = np.empty(len(places))
        for number, rows in self.by_block(places):
            squares_F[rows] = self.grams[number, number].diagonal()[places[rows] - number * self.block]
        variance_F = squares_F / self.num_rows - mean_F**2
        return Spread(mean_F, np.sqrt(np.maximum(variance_F, LEAST_DEVIATION**2)))

    def of_block(self, features_NF: Doubles, number: int) -> Doubles:
        """Take the columns of a block."""
        return features_NF[:, number * self.block : (number + 1) * self.block]

    def by_block(self, places: Concurrency) -> list[tuple[int, slice]]:
        """Say which of the places, which rise, are of which block."""
        numbers, starts = np.unique(places // self.block, return_index=True)
        stops = [*starts[1:].tolist(), len(places)]
        return [(int(number), slice(start, stop)) for number, start, stop in zip(numbers, starts.tolist(), stops, strict=True)]

    def gram(self, places: Concurrency) -> Doubles:
        """Put together the products of the features at these places."""
        gram_FF = np.empty((len(places), len(places)))
        blocks = self.by_block(places)
        for first, rows in blocks:
            for second, columns in blocks:
                if first <= second:
                    within = np.ix_(places[rows] - first * self.block, places[columns] - second * self.block)
                    gram_FF[rows, columns] = self.grams[first, second][within]
                    gram_FF[columns, rows] = gram_FF[rows, columns].T
        return gram_FF

    def fit(self, places: Concurrency, strengths: Sequence[float]) -> Iterator[tuple[float, Line]]:
        """Solve for the features at these places, at each ridge strength λ."""
        rows, spread = self.num_rows, self.spread(places)
        mean_F, deviation_F, mean_W = spread.mean_F, spread.deviation_F, self.vectors_W / rows
        covariance_FF = self.gram(places)
        covariance_FF /= rows
        covariance_FF -= np.outer(mean_F, mean_F)
        covariance_FF /= deviation_F
        covariance_FF /= deviation_F[:, None]
        cross_FW = (self.cross_FW[places] / rows - np.outer(mean_F, mean_W)) / deviation_F[:, None]
        variance_F = covariance_FF.diagonal().copy()
        for strength in strengths:
            np.fill_diagonal(covariance_FF, variance_F + strength)
            weight_FW = np.linalg.solve(covariance_FF, cross_FW) / deviation_F[:, None]
            # the standardisation is folded into the map: one product and one sum a chunk
            yield strength, Line(weight_FW.astype(np.float32), (mean_W - mean_F @ weight_FW).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near vectors come to the full model's, over chunks that nothing was fitted on."""

    cosine: float
    """Mean over chunks of the cosine between a vector and the full model's."""
    overlap: float
    """Share of the ten nearest chunks by full-model vectors that a full-model query finds among these."""


def unit(vectors_NW: Floats) -> Floats:
    """Give each vector length 1."""
    unit_NW: Floats = vectors_NW / np.maximum(np.linalg.norm(vectors_NW, axis=1, keepdims=True), 1e-12)
    return unit_NW


def measure_fidelity(vectors_NW: Floats, full_NW: Floats) -> Fidelity:
    """Compare vectors with the full model's: as they are, and as documents that full-model queries search."""
    vectors_NW, full_NW = unit(vectors_NW), unit(full_NW)
    return Fidelity(float((vectors_NW * full_NW).sum(axis=1).mean()), share_of_nearest(full_NW, vectors_NW, full_NW))


def share_of_nearest(full_NW: Floats, documents_NX: Floats, queries_NX: Floats | None = None, nearest: int = 10) -> float:
    """Give the share of the nearest rows by full vectors that queries, or documents themselves, find among documents; all of length 1."""
    count = min(nearest, len(full_NW) - 1)
    asked_NX = documents_NX if queries_NX is None else queries_NX
    wanted, found = nearest_rows(full_NW, full_NW, count), nearest_rows(asked_NX, documents_NX, count)
    shared = [len(np.intersect1d(each, other)) for each, other in zip(wanted, found, strict=True)]
    return float(np.mean(shared)) / count if count else 1.0


def nearest_rows(queries_NW: Floats, documents_NW: Floats, count: int) -> npt.NDArray[np.int64]:
    """Find for each row of queries its nearest documents, the one of the same number left out; (N, count), in no order."""
    found = []
    for start in range(0, len(queries_NW), 512):
        scores = queries_NW[start : start + 512] @ documents_NW.T
        scores[np.arange(len(scores)), start + np.arange(len(scores))] = -np.inf
        found.append(np.argpartition(-scores, max(count - 1, 0), axis=1)[:, :count])
    return np.concatenate(found)
