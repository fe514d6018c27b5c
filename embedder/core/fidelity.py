"""How closely vectors match the full model's: by cosine, and by the nearest neighbors that they keep. Pure functions of numpy.

A calibration holds the spread of both figures over draws of SAMPLE_CHUNKS of its held-out chunks. A run measures them on as many of the
chunks that it embedded, and has drifted if one of them is below the calibration's own by more than the margin.

N = chunks, W = the full model's width, X = components compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from embedder.core.quantization import Floats, cut_vectors

NUM_NEAREST = 10
SAMPLE_CHUNKS = 64
"""Chunks of a sample. Ten nearest of so few are a larger share than of a table, so only samples of one size compare."""
LEAST_CHUNKS = 20
"""Fewest chunks whose ten nearest say something."""
DEVIATIONS, MARGIN = 3, 0.02
"""A run has drifted if a figure is lower than the calibration's by more than this many standard deviations and this much."""
CALIBRATE_AGAIN = (
    "calibrate again on the present corpus (jobs.calibrate with a new output.uri), and embed with that "
    "--embedding.calibration and --output.replace true"
)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How closely vectors match the full model's, over some chunks."""

    cosine: float
    """Mean cosine between a chunk's vector and the full model's."""
    overlap: float
    """Share of the ten nearest chunks by full-model vectors that a full-model query finds among these vectors."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over draws of SAMPLE_CHUNKS held-out chunks."""

    mean: float
    deviation: float
    """Standard deviation."""

    def floor(self, num_chunks: int) -> float:
        """Return the lowest value without drift, for a sample of so many chunks."""
        return self.mean - DEVIATIONS * self.deviation * sqrt(SAMPLE_CHUNKS / num_chunks) - MARGIN


@dataclass(frozen=True, slots=True)
class Expected:
    """Figures of a calibration on its held-out chunks."""

    cosine: Spread
    overlap: Spread

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> "Expected":
        """Return the figures of `dataclasses.asdict`."""
        return Expected(Spread(**fields["cosine"]), Spread(**fields["overlap"]))


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of a run on a sample of the chunks that it embedded."""

    chunks: int
    cosine: float
    overlap: float | None
    """None: the sample has fewer than LEAST_CHUNKS."""
    expected: Expected | None
    """None: the calibration has no figures for these vectors."""
    drifted: bool


def measure_sample(vectors_NX: Floats, queries_NX: Floats, full_NW: Floats, expected: Expected | None) -> Measured:
    """Compare the published vectors of a sample with the full model's, as they are in the table's space and at full width."""
    vectors_NX, queries_NX, full_NW = (unit(each) for each in (vectors_NX, queries_NX, full_NW))
    count = len(vectors_NX)
    cosine = mean_cosine(vectors_NX, queries_NX)
    overlap = share_of_nearest(full_NW, vectors_NX, queries_NX) if count >= LEAST_CHUNKS else None
    drifted = expected is not None and (
        cosine < expected.cosine.floor(count) or (overlap is not None and overlap < expected.overlap.floor(count))
    )
    return Measured(count, cosine, overlap, expected, drifted)


def describe_fidelity(measured: Mapping[str, Any]) -> str:
    """Return the fields of `Measured`, as a run's record has them, in words."""
    expected = measured["expected"]
    figures = [("cosine", measured["cosine"], "cosine"), ("ten nearest kept", measured["overlap"], "overlap")]
    shown = [
        f"{words} {value:.3f}" + (f" (held out {expected[name]['mean']:.3f} ± {expected[name]['deviation']:.3f})" if expected else "")
        for words, value, name in figures
        if value is not None
    ]
    without = "" if expected else "; the calibration has no held-out figures for such vectors"
    return f"{', '.join(shown)}, on {measured['chunks']:,} chunks{without}{'; drifted' if measured['drifted'] else ''}"


def measure_fidelity(vectors_NW: Floats, full_NW: Floats) -> Fidelity:
    """Compare vectors with the full model's: by cosine, and as documents searched by full-model queries."""
    vectors_NW, full_NW = unit(vectors_NW), unit(full_NW)
    return Fidelity(mean_cosine(vectors_NW, full_NW), share_of_nearest(full_NW, vectors_NW, full_NW))


def mean_cosine(vectors_NX: Floats, queries_NX: Floats) -> float:
    """Return the mean inner product of rows of length 1."""
    return float((vectors_NX * queries_NX).sum(axis=1).mean())


def share_of_nearest(full_NW: Floats, documents_NX: Floats, queries_NX: Floats | None = None) -> float:
    """Return the share of the nearest rows by full vectors that queries, or the documents themselves, find; all of length 1."""
    wanted = nearest_rows(full_NW, full_NW, NUM_NEAREST)
    found = nearest_rows(documents_NX if queries_NX is None else queries_NX, documents_NX, NUM_NEAREST)
    return int((wanted[:, :, None] == found[:, None]).sum()) / wanted.size


def nearest_rows(queries_NW: Floats, documents_NW: Floats, count: int) -> npt.NDArray[np.int64]:
    """Return the nearest documents of each query, except the one in the query's own row; (N, count), unordered."""
    found = []
    for start in range(0, len(queries_NW), 512):
        scores = queries_NW[start : start + 512] @ documents_NW.T
        scores[np.arange(len(scores)), start + np.arange(len(scores))] = -np.inf
        found.append(np.argpartition(-scores, count - 1, axis=1)[:, :count])
    return np.concatenate(found)


def unit(vectors_NX: Floats) -> Floats:
    """Return the vectors at length 1."""
    return cut_vectors(vectors_NX, vectors_NX.shape[1], normalize=True)
