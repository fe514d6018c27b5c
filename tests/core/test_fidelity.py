"""Figures of fidelity, and when a run's are so far below a calibration's that its corpus has drifted."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from embedder.core.fidelity import Expected, Spread, describe_fidelity, measure_fidelity, measure_sample, nearest_rows, unit

EXPECTED = Expected(Spread(0.9, 0.01), Spread(0.8, 0.03))


def draw_vectors(count: int, seed: int, dim: int = 16) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32))


def test_fidelity_is_1_for_the_full_model_and_near_chance_for_noise() -> None:
    vectors = draw_vectors(300, 0)
    same = measure_fidelity(vectors, vectors)
    assert same.cosine == pytest.approx(1, abs=1e-6)
    assert same.overlap == 1
    noise = measure_fidelity(draw_vectors(300, 1), vectors)
    assert abs(noise.cosine) < 0.1
    assert noise.overlap < 0.1


def test_nearest_rows_leave_out_the_row_itself() -> None:
    line = np.stack([np.cos(np.arange(6) / 10), np.sin(np.arange(6) / 10)], axis=1).astype(np.float32)
    assert [sorted(each) for each in nearest_rows(line, line, 2).tolist()] == [[1, 2], [0, 2], [1, 3], [2, 4], [3, 5], [3, 4]]


def test_the_margin_is_three_deviations_and_two_hundredths_and_widens_for_fewer_chunks() -> None:
    assert EXPECTED.cosine.floor(64) == pytest.approx(0.9 - 0.03 - 0.02)
    assert EXPECTED.cosine.floor(4) == pytest.approx(0.9 - 4 * 0.03 - 0.02)


@pytest.mark.parametrize(("cosine", "drifted"), [(0.86, False), (0.84, True)])
def test_a_cosine_below_the_margin_is_drift(cosine: float, drifted: bool) -> None:
    full = np.eye(64, dtype=np.float32)
    vectors = cosine * full + np.sqrt(1 - cosine**2) * np.roll(full, 1, axis=1)
    measured = measure_sample(vectors, full, full, replace(EXPECTED, overlap=Spread(0, 0)))
    assert measured.cosine == pytest.approx(cosine)
    assert measured.drifted == drifted
    assert ("drifted" in describe_fidelity(asdict(measured))) == drifted


def test_neighbors_that_are_lost_are_drift_too() -> None:
    full, others = draw_vectors(64, 0), draw_vectors(64, 1)
    measured = measure_sample(others, others, full, EXPECTED)
    assert measured.cosine == pytest.approx(1)
    assert measured.overlap is not None
    assert measured.overlap < 0.3
    assert measured.drifted


def test_neighbors_are_those_at_full_width_whatever_the_dim() -> None:
    full = draw_vectors(64, 0)
    measured = measure_sample(full[:, :4], full[:, :4], full, None)
    assert measured.cosine == pytest.approx(1)
    assert measured.overlap is not None
    assert 0.2 < measured.overlap < 0.8


@pytest.mark.parametrize("count", [1, 19])
def test_fewer_than_twenty_chunks_have_a_cosine_alone(count: int) -> None:
    vectors = draw_vectors(count, 0)
    measured = measure_sample(vectors, vectors, vectors, EXPECTED)
    assert (measured.chunks, measured.overlap, measured.drifted) == (count, None, False)
    assert "ten nearest" not in describe_fidelity(asdict(measured))


def test_without_figures_of_the_calibration_there_is_no_drift_but_a_remark() -> None:
    measured = measure_sample(draw_vectors(64, 0), draw_vectors(64, 1), draw_vectors(64, 2), None)
    assert not measured.drifted
    assert describe_fidelity(asdict(measured)).endswith("; the calibration has no held-out figures for such vectors")
