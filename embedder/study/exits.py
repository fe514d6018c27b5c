"""States of the layers and vectors of the full model, a sample of each → maps from the one to the other, by ridge regression.

N = chunks, F = features (poolings of layers, side by side), W = width of the full model's vectors.
Hoerl and Kennard, Ridge Regression: Biased Estimation for Nonorthogonal Problems, 1970: the map M minimises
‖Y − Z·M‖² + λ·N·‖M‖² over standardised features Z; the sums ZᵀZ and ZᵀY are all that it needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedder.model.exits import NUM_POOLINGS

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

MOST_FEATURES = 12_288
"""Of one map: its sums hold 1.2 GB, and a sample must be larger than this to say much."""
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

    def places(self, depth: int) -> Places:
        """Give the columns of a depth's features; they rise."""
        block = NUM_POOLINGS * self.hidden_size
        starts = [self.tapped.index(layer) * block for layer in self.layers[depth]]
        return np.concatenate([np.arange(start, start + block) for start in starts])


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
    """Sufficient statistics of a sample, in float64: batches may come in any number, size and order."""

    def __init__(self, num_features: int, width: int) -> None:
        self.num_rows = 0
        self.features_F = np.zeros(num_features)
        self.vectors_W = np.zeros(width)
        self.gram_FF = np.zeros((num_features, num_features))
        self.cross_FW = np.zeros((num_features, width))

    def add(self, features_NF: Floats, vectors_NW: Floats) -> None:
        """Take in a batch of normalised features and the vectors they should become."""
        features, vectors = features_NF.astype(np.float64), vectors_NW.astype(np.float64)
        self.num_rows += len(features)
        self.features_F += features.sum(axis=0)
        self.vectors_W += vectors.sum(axis=0)
        self.gram_FF += features.T @ features
        self.cross_FW += features.T @ vectors

    def spread(self, places: Places) -> "Spread":
        """Say where the features at these places lie."""
        mean_F = self.features_F[places] / self.num_rows
        variance_F = self.gram_FF[places, places] / self.num_rows - mean_F**2
        return Spread(mean_F, np.sqrt(np.maximum(variance_F, LEAST_DEVIATION**2)))

    def fit(self, places: Places, strengths: Sequence[float]) -> Iterator[tuple[float, Line]]:
        """Solve for the features at these places, at each ridge strength λ."""
        rows, spread = self.num_rows, self.spread(places)
        mean_F, deviation_F, mean_W = spread.mean_F, spread.deviation_F, self.vectors_W / rows
        covariance_FF = self.gram_FF[np.ix_(places, places)] / rows - np.outer(mean_F, mean_F)
        covariance_FF /= np.outer(deviation_F, deviation_F)
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


def measure_fidelity(vectors_NW: Floats, full_NW: Floats, nearest: int = 10) -> Fidelity:
    """Compare vectors with the full model's: as they are, and as documents that full-model queries search."""
    vectors_NW, full_NW = unit(vectors_NW), unit(full_NW)
    cosine = float((vectors_NW * full_NW).sum(axis=1).mean())
    count = min(nearest, len(full_NW) - 1)
    wanted, found = nearest_rows(full_NW, full_NW, count), nearest_rows(full_NW, vectors_NW, count)
    shared = [len(np.intersect1d(each, other)) for each, other in zip(wanted, found, strict=True)]
    return Fidelity(cosine, float(np.mean(shared)) / count if count else 1.0)


def nearest_rows(queries_NW: Floats, documents_NW: Floats, count: int) -> npt.NDArray[np.int64]:
    """Find for each row of queries its nearest documents, the one of the same number left out; (N, count), in no order."""
    found = []
    for start in range(0, len(queries_NW), 512):
        scores = queries_NW[start : start + 512] @ documents_NW.T
        scores[np.arange(len(scores)), start + np.arange(len(scores))] = -np.inf
        found.append(np.argpartition(-scores, max(count - 1, 0), axis=1)[:, :count])
    return np.concatenate(found)
