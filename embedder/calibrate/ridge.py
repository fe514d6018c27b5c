"""Pooled states of the layers and vectors of the full model, for a sample → maps from states to vectors, by ridge regression.

N = chunks, F = features (poolings of layers, side by side), K = blocks of features, W = width of the full model's vectors.
Hoerl and Kennard, Ridge Regression: Biased Estimation for Nonorthogonal Problems, 1970: the map M minimizes
‖Y − Z·M‖² + λ·N·‖M‖² over standardized features Z. It is (ZᵀZ + λN)⁻¹·ZᵀY and, as well, Zᵀ·(ZZᵀ + λN)⁻¹·Y.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from embedder.core.quantization import Floats
from embedder.core.rotation import Doubles
from embedder.model.exits import NUM_POOLINGS

Columns = npt.NDArray[np.int64]

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


@dataclass(frozen=True, slots=True)
class AffineMap:
    """An affine map: features @ weight_FW + bias_W."""

    weight_FW: Floats  # noqa: N815
    bias_W: Floats  # noqa: N815

    def apply(self, features_NF: Floats) -> Floats:
        """Return the mapped vectors, not normalized."""
        return features_NF @ self.weight_FW + self.bias_W


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of a sample on disk: its chunks, how many of them are the sample's own, and the weight of each."""

    states: Path
    """(K, N, F/K) states: a block is read without the others."""
    vectors: Path
    num_rows: int
    num_real: int
    weight: float


class Rows:
    """A sample on disk, from which each map reads its features: memory holds a unit, and a square matrix over features or chunks,
    whichever are fewer, with its factor."""

    def __init__(self, folder: Path, num_blocks: int, block: int, width: int) -> None:
        self.folder = folder
        self.units: list[Unit] = []
        self.weight = 0.0
        """Chunks, each counted by its weight."""
        self.features_KF, self.squares_KF = np.zeros((num_blocks, block)), np.zeros((num_blocks, block))
        self.vectors_W = np.zeros(width)

    @property
    def num_rows(self) -> int:
        """Chunks, whatever their weights."""
        return sum(unit.num_rows for unit in self.units)

    def add(self, features_NF: Floats, vectors_NW: Floats, num_real: int, weight: float = 1.0) -> None:
        """Add a unit of normalized features and the vectors to map them to, its own chunks first; units may come in any order."""
        name, shape = self.folder / str(len(self.units)), self.features_KF.shape
        self.units.append(Unit(name.with_suffix(".states.npy"), name.with_suffix(".npy"), len(features_NF), num_real, weight))
        np.save(self.units[-1].states, features_NF.reshape(-1, *shape).swapaxes(0, 1))
        np.save(self.units[-1].vectors, vectors_NW)
        self.weight += weight * len(features_NF)
        self.features_KF += weight * features_NF.sum(axis=0, dtype=np.float64).reshape(shape)
        self.squares_KF += weight * np.einsum("nf,nf->f", features_NF, features_NF, dtype=np.float64).reshape(shape)
        self.vectors_W += weight * vectors_NW.sum(axis=0, dtype=np.float64)

    def read_real(self, blocks: Sequence[int]) -> Iterator[Floats]:
        """Yield the features of these blocks of each unit's own chunks."""
        return (read_states(unit, blocks)[: unit.num_real] for unit in self.units if unit.num_real)

    def read_real_vectors(self) -> Iterator[Floats]:
        """Yield the vectors of each unit's own chunks."""
        return (np.load(unit.vectors)[: unit.num_real] for unit in self.units if unit.num_real)

    def mean_and_deviation(self, blocks: Sequence[int]) -> tuple[Doubles, Doubles]:
        """Return the mean and the standard deviation of the features of these blocks."""
        mean_F = self.features_KF[blocks].ravel() / self.weight
        return mean_F, np.sqrt(np.maximum(self.squares_KF[blocks].ravel() / self.weight - mean_F**2, LEAST_DEVIATION**2))

    def fit(self, blocks: Sequence[int], strengths: Sequence[float]) -> Iterator[tuple[float, AffineMap]]:
        """Yield the map of the features of these blocks, which rise, at each ridge strength λ."""
        mean_F, deviation_F = self.mean_and_deviation(blocks)
        mean_W = self.vectors_W / self.weight
        solve = self.solve_by_features if len(mean_F) <= self.num_rows else self.solve_by_rows
        for strength, standard_FW in zip(strengths, solve(blocks, strengths), strict=True):
            weight_FW = standard_FW / deviation_F[:, None]
            # the map includes the standardization: one product and one sum per chunk
            yield strength, AffineMap(weight_FW.astype(np.float32), (mean_W - mean_F @ weight_FW).astype(np.float32))

    def solve_by_features(self, blocks: Sequence[int], strengths: Sequence[float]) -> Iterator[Doubles]:
        """Yield the map of standardized features at each strength, from the matrix of their products."""
        num_features = len(blocks) * self.features_KF.shape[1]
        gram_FF, cross_FW = np.zeros((num_features, num_features)), np.zeros((num_features, len(self.vectors_W)))
        for unit in self.units:
            standard_NF, vectors_NW = self._standardize(unit, blocks), self._center(unit)
            gram_FF += standard_NF.T @ standard_NF
            cross_FW += standard_NF.T @ vectors_NW
        yield from solve_ridge(gram_FF, cross_FW, strengths)

    def solve_by_rows(self, blocks: Sequence[int], strengths: Sequence[float]) -> Iterator[Doubles]:
        """Yield the same maps from the matrix of the chunks' products, one block of features at a time."""
        gram_NN = np.zeros((self.num_rows, self.num_rows))
        for number in blocks:
            standard_NF = self._stack(number)
            gram_NN += standard_NF @ standard_NF.T
        for dual_NW in solve_ridge(gram_NN, np.concatenate([self._center(unit) for unit in self.units]), strengths):
            yield np.concatenate([self._stack(number).T @ dual_NW for number in blocks])

    def _stack(self, number: int) -> Doubles:
        return np.concatenate([self._standardize(unit, [number]) for unit in self.units])

    def _standardize(self, unit: Unit, blocks: Sequence[int]) -> Doubles:
        """Return features whose products over all units are correlations."""
        mean_F, deviation_F = self.mean_and_deviation(blocks)
        standard_NF: Doubles = (read_states(unit, blocks) - mean_F) * ((unit.weight / self.weight) ** 0.5 / deviation_F)
        return standard_NF

    def _center(self, unit: Unit) -> Doubles:
        centered_NW: Doubles = (np.load(unit.vectors) - self.vectors_W / self.weight) * (unit.weight / self.weight) ** 0.5
        return centered_NW


def read_states(unit: Unit, blocks: Sequence[int]) -> Floats:
    """Read the features of these blocks, side by side."""
    states_KNF = np.load(unit.states, mmap_mode="r")
    return np.concatenate([states_KNF[number] for number in blocks], axis=1)


def solve_ridge(gram_XX: Doubles, targets_XW: Doubles, strengths: Sequence[float]) -> Iterator[Doubles]:
    """Yield the solution at each strength, by a Cholesky factor."""
    gram, targets, variance_X = torch.from_numpy(gram_XX), torch.from_numpy(targets_XW), gram_XX.diagonal().copy()
    for strength in strengths:
        np.fill_diagonal(gram_XX, variance_X + strength)
        yield torch.cholesky_solve(targets, torch.linalg.cholesky(gram)).numpy()


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
