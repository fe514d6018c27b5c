"""Metrics without labels are returned only if they are informative."""

import zlib
from collections.abc import Sequence

import numpy as np
import pytest

from embedder.core.quantization import Floats
from embedder.sweep.candidates import Side, Texts
from embedder.sweep.evaluate import COSINE, OVERLAP, evaluate_fidelity
from embedder.sweep.grid import Grid, View


class Noise:
    """A model with random vectors, independent at each depth."""

    name: str = "noise"
    width: int = 8

    def embed(self, texts: Texts, side: Side, depth: int) -> Floats:
        assert isinstance(texts, Sequence)
        return np.array([np.random.default_rng([depth, zlib.crc32(text.encode())]).normal(size=8) for text in texts], np.float32)


@pytest.mark.parametrize(("count", "names"), [(1, {COSINE}), (11, {COSINE}), (12, {COSINE, OVERLAP})])
def test_neighbors_are_compared_only_if_not_all_documents_are_neighbors(count: int, names: set[str]) -> None:
    views = tuple(View(Noise(), depth, (8,), ("same",)) for depth in (2, 1))
    scores = evaluate_fidelity([f"text {number}" for number in range(count)], Grid(views, ("float32",)), 500, 0)
    assert all(set(score.metrics) == names for score in scores.values())
    assert min(score.metrics.get(OVERLAP, 0) for score in scores.values()) < 1
