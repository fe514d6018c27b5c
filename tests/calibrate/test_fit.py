"""Maps and rotations are selected and measured on vectors that they were not fitted on."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedder.calibrate.fit import KnownItems, find_own, fit_exits, measure_cuts
from embedder.calibrate.ridge import Features, Moments, Rows, System
from embedder.core.fidelity import unit
from embedder.core.rotation import fit_rotation

SIZE, NUM_FITTED = 8, 90
BLOCK = 4 * SIZE


@pytest.mark.parametrize(("noise", "strength"), [(0.1, 0.001), (40.0, 10.0)])
def test_the_strength_is_chosen_on_chunks_held_out(noise: float, strength: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    states_NF = rng.normal(size=(400, 3 * BLOCK)).astype(np.float32)
    weight_FW = rng.normal(size=(2 * BLOCK, 12))
    full_NW = unit((states_NF[:, : 2 * BLOCK] @ weight_FW + noise * rng.normal(size=(400, 12))).astype(np.float32))
    features = Features({1: (0, 1)}, (0, 1, 3), SIZE, 2)
    rows = Rows(tmp_path, 3, BLOCK, 12)
    rows.add(states_NF[:NUM_FITTED], full_NW[:NUM_FITTED], NUM_FITTED)
    held_out: Any = SimpleNamespace(states_NF=states_NF[NUM_FITTED:], full_NW=full_NW[NUM_FITTED:], native={1: full_NW[NUM_FITTED:]})
    maps, [report] = fit_exits(rows, held_out, features, (0.001, 0.1, 10.0))
    assert maps[1].weight_FW.shape == weight_FW.shape
    assert (report.num_features, report.strength) == (2 * BLOCK, strength)
    vectors_NW = held_out.states_NF[:, : 2 * BLOCK] @ maps[1].weight_FW + maps[1].bias_W
    assert (unit(vectors_NW) * held_out.full_NW).sum(axis=1).mean() == pytest.approx(report.calibrated.cosine, abs=1e-5)


def test_the_matrix_of_a_map_is_gone_before_another_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, systems, alive = np.random.default_rng(0), weakref.WeakSet[System](), list[int]()
    start = System.__init__

    def noted(system: System, rows: Rows) -> None:
        alive.append(len(systems))
        systems.add(system)
        start(system, rows)

    monkeypatch.setattr(System, "__init__", noted)
    states_NF, full_NW = rng.normal(size=(200, 3 * BLOCK)).astype(np.float32), unit(rng.normal(size=(200, 12)).astype(np.float32))
    features = Features({1: (0, 1), 2: (0, 2)}, (0, 1, 2), SIZE, 2)
    rows = Rows(tmp_path, 3, BLOCK, 12)
    rows.add(states_NF[:150], full_NW[:150], 150)
    native = {1: full_NW[150:], 2: full_NW[150:]}
    fit_exits(rows, SimpleNamespace(states_NF=states_NF[150:], full_NW=full_NW[150:], native=native), features, (0.1, 1.0))  # type: ignore[arg-type]
    assert alive == [0, 0]


def test_queries_are_scored_by_the_place_of_their_own_document() -> None:
    documents = np.eye(12, dtype=np.float32)
    assert find_own(documents, documents) == 1
    second, last = documents.copy(), documents.copy()
    second[0] = unit(np.array([[0.8, 0.9] + [0] * 10], np.float32))[0]
    last[0] = unit(np.array([[0.1] + [0.9] * 11], np.float32))[0]
    assert find_own(second, documents) == pytest.approx((11 + 1 / np.log2(3)) / 12)
    assert find_own(last, documents) == pytest.approx(11 / 12), "not among the first ten"


def test_an_exit_is_searched_by_queries_of_the_full_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    states_NF, weight_FW = rng.normal(size=(300, BLOCK)).astype(np.float32), rng.normal(size=(BLOCK, 12))
    full_NW = unit((states_NF @ weight_FW).astype(np.float32))
    features = Features({1: (1,)}, (1,), SIZE, 2)
    rows = Rows(tmp_path, 1, BLOCK, 12)
    rows.add(states_NF[:200], full_NW[:200], 200)
    held_out: Any = SimpleNamespace(states_NF=states_NF[200:], full_NW=full_NW[200:], native={1: full_NW[200:]})
    matching, shuffled = KnownItems(held_out, full_NW[200:]), KnownItems(held_out, full_NW[200:][::-1].copy())
    assert (matching.found, shuffled.found < 0.2) == (1, True)
    [[good], [poor]] = [fit_exits(rows, held_out, features, (0.001,), known)[1] for known in (matching, shuffled)]
    assert (good.known_item, poor.known_item is not None and poor.known_item < 0.2) == (1, True)


def make_vectors(count: int, seed: int) -> np.ndarray:
    """Draw vectors that vary along 6 directions of 48, with some noise. The directions are not aligned with the components."""
    directions = np.linalg.qr(np.random.default_rng(9).normal(size=(48, 48)))[0][:6]
    draw = np.random.default_rng(seed)
    return unit((draw.normal(size=(count, 6)) @ directions + 0.02 * draw.normal(size=(count, 48))).astype(np.float32))


def test_a_rotated_small_dim_keeps_most_neighbors_of_vectors_with_few_directions() -> None:
    moments = Moments(48)
    for start in range(0, 600, 200):
        moments.add(make_vectors(600, 0)[start : start + 200])
    np.testing.assert_allclose(moments.covariance_WW, np.cov(make_vectors(600, 0).T, bias=True), atol=1e-9)
    [small, large] = measure_cuts(make_vectors(300, 1), fit_rotation(moments.covariance_WW), (6, 24, 48))
    assert (small.dim, large.dim) == (6, 24)
    assert small.rotated > 0.85
    assert small.rotated > small.plain + 0.4
    assert large.rotated > large.plain


def test_a_rotation_of_vectors_without_main_directions_changes_nothing() -> None:
    vectors = unit(np.random.default_rng(2).normal(size=(400, 16)).astype(np.float32))
    [report] = measure_cuts(vectors, np.linalg.qr(np.random.default_rng(3).normal(size=(16, 16)))[0].astype(np.float32), (8, 16))
    assert report.rotated == pytest.approx(report.plain, abs=0.06)
