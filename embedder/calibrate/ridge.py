"""Pooled states of the layers and vectors of the full model, for a sample → maps from states to vectors, by ridge regression.

N = chunks, H = those held out, F = features (poolings of layers, side by side), K = blocks of features, W = width of full vectors.
Hoerl and Kennard, Ridge Regression: Biased Estimation for Nonorthogonal Problems, 1970: the map M minimizes
‖Y − Z·M‖² + λ·N·‖M‖² over standardized features Z. It is (ZᵀZ + λN)⁻¹·ZᵀY and, as well, Zᵀ·(ZZᵀ + λN)⁻¹·Y.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from embedder.core.quantization import Floats
from embedder.core.rotation import Doubles
from embedder.model.attention_pooling import UNQUERIED

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
    num_queries: int

    @property
    def block(self) -> int:
        """Features per layer."""
        return (UNQUERIED + self.num_queries) * self.hidden_size

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
    whichever are fewer, with its factor or the matrix of the map before."""

    def __init__(self, folder: Path, num_blocks: int, block: int, width: int) -> None:
        self.folder = folder
        self.units: list[Unit] = []
        self.weight = 0.0
        """Chunks, each counted by its weight."""
        self.features_KF, self.squares_KF = np.zeros((num_blocks, block)), np.zeros((num_blocks, block))
        self.vectors_W = np.zeros(width)
        self.held_KHF: Floats = np.zeros((num_blocks, 0, block), np.float32)
        self._system: ByFeatures | ByRows | None = None

    @property
    def num_rows(self) -> int:
        """Chunks, whatever their weights."""
        return sum(unit.num_rows for unit in self.units)

    def add(self, features_NF: Floats, vectors_NW: Floats, num_real: int, weight: float = 1.0) -> None:
        """Add a unit of normalized features and the vectors to map them to, its own chunks first; units may come in any order."""
        self._system = None
        name, shape = self.folder / str(len(self.units)), self.features_KF.shape
        self.units.append(Unit(name.with_suffix(".states.npy"), name.with_suffix(".npy"), len(features_NF), num_real, weight))
        np.save(self.units[-1].states, features_NF.reshape(-1, *shape).swapaxes(0, 1))
        np.save(self.units[-1].vectors, vectors_NW)
        self.weight += weight * len(features_NF)
        self.features_KF += weight * features_NF.sum(axis=0, dtype=np.float64).reshape(shape)
        self.squares_KF += weight * np.einsum("nf,nf->f", features_NF, features_NF, dtype=np.float64).reshape(shape)
        self.vectors_W += weight * vectors_NW.sum(axis=0, dtype=np.float64)

    def hold_out(self, features_HF: Floats) -> None:
        """Take the features of chunks whose vectors every solution predicts."""
        self._system, self.held_KHF = None, features_HF.reshape(len(features_HF), *self.features_KF.shape).swapaxes(0, 1)

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

    def fit(self, blocks: Sequence[int]) -> Callable[[float], "Solution"]:
        """Return the function from a ridge strength λ to the solution for the features of these blocks, which rise.

        Products of features are kept for the next call: blocks that begin with those of the call before take products of the others alone.
        """
        kind = ByFeatures if len(blocks) * self.features_KF.shape[1] <= self.num_rows else ByRows
        if not isinstance(self._system, kind) or list(blocks[: len(self._system.blocks)]) != self._system.blocks:
            self._system = None  # frees its matrix before the next is made
            self._system = kind(self)
        system = self._system
        system.extend(blocks)

        return lambda strength: Solution(system, system.solve(strength))

    def standardize(self, unit: Unit, blocks: Sequence[int]) -> Doubles:
        """Return a unit's features, whose products over all units are correlations."""
        mean_F, deviation_F = self.mean_and_deviation(blocks)
        standard_NF: Doubles = (read_states(unit, blocks) - mean_F) * ((unit.weight / self.weight) ** 0.5 / deviation_F)
        return standard_NF

    def standardize_held_out(self, blocks: Sequence[int]) -> Doubles:
        """Return the features of the chunks held out."""
        mean_F, deviation_F = self.mean_and_deviation(blocks)
        standard_HF: Doubles = (np.concatenate(list(self.held_KHF[blocks]), axis=1) - mean_F) / deviation_F
        return standard_HF

    def center(self, unit: Unit) -> Doubles:
        """Return a unit's vectors, weighted likewise."""
        centered_NW: Doubles = (np.load(unit.vectors) - self.vectors_W / self.weight) * (unit.weight / self.weight) ** 0.5
        return centered_NW


class System(ABC):
    """A square matrix of products over some blocks of features, and the targets; X = features or chunks."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.blocks: list[int] = []
        self.gram_XX, self.targets_XW = np.zeros((0, 0)), np.zeros((0, len(rows.vectors_W)))

    @abstractmethod
    def extend(self, blocks: Sequence[int]) -> None:
        """Take up blocks after those that are here already."""

    @abstractmethod
    def weigh(self, solution_XW: Doubles) -> Doubles:
        """Return the (F, W) map of standardized features."""

    @abstractmethod
    def predict(self, solution_XW: Doubles) -> Doubles:
        """Return the (H, W) centered vectors of the chunks held out."""

    def solve(self, strength: float) -> Doubles:
        """Return the solution, by a Cholesky factor."""
        variance_X = self.gram_XX.diagonal().copy()
        np.fill_diagonal(self.gram_XX, variance_X + strength)
        factor_XX = torch.linalg.cholesky(torch.from_numpy(self.gram_XX))
        np.fill_diagonal(self.gram_XX, variance_X)
        solution_XW: Doubles = torch.cholesky_solve(torch.from_numpy(self.targets_XW), factor_XX).numpy()
        return solution_XW


@dataclass(frozen=True, slots=True)
class Solution:
    """The solution of a system at one strength."""

    system: System
    solution_XW: Doubles  # noqa: N815

    def predict(self) -> Floats:
        """Return the vectors of the chunks held out, not normalized. Blocks that the system took up since are not expected."""
        rows = self.system.rows
        return (self.system.predict(self.solution_XW) + rows.vectors_W / rows.weight).astype(np.float32)

    def make_map(self) -> AffineMap:
        """Return the map, which includes the standardization: one product and one sum per chunk."""
        rows = self.system.rows
        mean_F, deviation_F = rows.mean_and_deviation(self.system.blocks)
        weight_FW = self.system.weigh(self.solution_XW) / deviation_F[:, None]
        return AffineMap(weight_FW.astype(np.float32), (rows.vectors_W / rows.weight - mean_F @ weight_FW).astype(np.float32))


class ByFeatures(System):
    """The matrix of the features' products."""

    def extend(self, blocks: Sequence[int]) -> None:
        """Take up blocks after those that are here already: add the products of their features with all."""
        old, num_features = len(self.gram_XX), len(blocks) * self.rows.features_KF.shape[1]
        border_FX, cross_XW = np.zeros((num_features, num_features - old)), np.zeros((num_features - old, self.targets_XW.shape[1]))
        for unit in self.rows.units:
            standard_NF = self.rows.standardize(unit, blocks)
            border_FX += standard_NF.T @ standard_NF[:, old:]
            cross_XW += standard_NF[:, old:].T @ self.rows.center(unit)
        gram_FF = np.empty((num_features, num_features))
        gram_FF[:old, :old], gram_FF[:, old:], gram_FF[old:, :old] = self.gram_XX, border_FX, border_FX[:old].T
        self.blocks, self.gram_XX, self.targets_XW = list(blocks), gram_FF, np.concatenate([self.targets_XW, cross_XW])

    def weigh(self, solution_XW: Doubles) -> Doubles:
        """Return the (F, W) map of standardized features, which is the solution."""
        return solution_XW

    def predict(self, solution_XW: Doubles) -> Doubles:
        """Return the (H, W) centered vectors of the chunks held out."""
        return self.rows.standardize_held_out(self.blocks) @ solution_XW


class ByRows(System):
    """The matrix of the chunks' products, which has the same map."""

    def extend(self, blocks: Sequence[int]) -> None:
        """Take up blocks after those that are here already: add the products of chunks over their features, one block at a time."""
        if not self.blocks:
            self.gram_XX = np.zeros((self.rows.num_rows, self.rows.num_rows))
            self.kernel_HN = np.zeros((self.rows.held_KHF.shape[1], self.rows.num_rows))
            self.targets_XW = np.concatenate([self.rows.center(unit) for unit in self.rows.units])
        for number in blocks[len(self.blocks) :]:
            standard_NF = self._stack(number)
            self.gram_XX += standard_NF @ standard_NF.T
            self.kernel_HN += self.rows.standardize_held_out([number]) @ standard_NF.T
        self.blocks = list(blocks)

    def weigh(self, solution_XW: Doubles) -> Doubles:
        """Return the (F, W) map of standardized features, from the weights of the chunks."""
        return np.concatenate([self._stack(number).T @ solution_XW for number in self.blocks])

    def predict(self, solution_XW: Doubles) -> Doubles:
        """Return the (H, W) centered vectors of the chunks held out, without the map, which takes as long as the solution."""
        return self.kernel_HN @ solution_XW

    def _stack(self, number: int) -> Doubles:
        return np.concatenate([self.rows.standardize(unit, [number]) for unit in self.rows.units])


def read_states(unit: Unit, blocks: Sequence[int]) -> Floats:
    """Read the features of these blocks, side by side."""
    states_KNF = np.load(unit.states, mmap_mode="r")
    return np.concatenate([states_KNF[number] for number in blocks], axis=1)


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
