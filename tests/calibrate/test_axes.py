"""What a turn is worth is measured on vectors that the axes were not fitted on."""

import numpy as np
import pytest

from embedder.calibrate.ridge import Sums, unit
from embedder.calibrate.run import measure_cuts
from embedder.core.rotation import fit_rotation


def make_vectors(count: int, seed: int) -> np.ndarray:
    """Draw vectors that vary along 6 directions of 48, none of them an axis, with some noise."""
    directions = np.linalg.qr(np.random.default_rng(9).normal(size=(48, 48)))[0][:6]
    draw = np.random.default_rng(seed)
    return unit((draw.normal(size=(count, 6)) @ directions + 0.02 * draw.normal(size=(count, 48))).astype(np.float32))


def test_a_small_dim_keeps_nearly_all_where_few_directions_count() -> None:
    sums = Sums(1, 48)
    for start in range(0, 600, 200):
        vectors = make_vectors(600, 0)[start : start + 200]
        sums.add(np.zeros((200, 1), np.float32), vectors)
    np.testing.assert_allclose(sums.covariance_WW, np.cov(make_vectors(600, 0).T, bias=True), atol=1e-9)
    [small, large] = measure_cuts(make_vectors(300, 1), fit_rotation(sums.covariance_WW), (6, 24, 48))
    assert (small.dim, large.dim) == (6, 24)
    assert small.rotated > 0.85
    assert small.rotated > small.plain + 0.4
    assert large.rotated > large.plain


def test_nothing_is_lost_or_won_where_all_directions_are_alike() -> None:
    vectors = unit(np.random.default_rng(2).normal(size=(400, 16)).astype(np.float32))
    [report] = measure_cuts(vectors, np.linalg.qr(np.random.default_rng(3).normal(size=(16, 16)))[0].astype(np.float32), (8, 16))
    assert report.rotated == pytest.approx(report.plain, abs=0.06)
