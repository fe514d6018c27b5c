"""A calibration's own figures are those of samples as small as a run's, for all vectors that tables of it may hold."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedder.calibrate.drift import choose_quantizations, expect_fidelity, measure_draws
from embedder.core.errors import ConfigError
from embedder.core.fidelity import measure_sample, unit
from embedder.core.quantization import fit_ranges
from embedder.model.calibration import Calibration, ExitMap, RangeKey
from tests.core.test_spec import SPEC

WIDTH, DIMS = 16, (8, 12, 16)


def make_up(count: int, noise: float = 0.3) -> tuple[Any, dict[int, ExitMap], np.ndarray]:
    """Make up chunks held out whose features are the full vectors with noise, and the map that leaves them as they are."""
    draw = np.random.default_rng(0)
    full = unit(draw.normal(size=(count, WIDTH)).astype(np.float32))
    states = (full + noise / 4 * draw.normal(size=full.shape)).astype(np.float32)
    ranges = {RangeKey("calibrated", 1, dim, rotated): fit_ranges(unit(states[:, :dim])) for dim in DIMS for rotated in (False, True)}
    collected = SimpleNamespace(
        held_out=SimpleNamespace(states_NF=states, full_NW=full),
        features=SimpleNamespace(columns=lambda _depth: np.arange(WIDTH)),
        extremes=SimpleNamespace(dims=DIMS, ranges=ranges, normalize=True),
    )
    return collected, {1: ExitMap((0, 1), np.eye(WIDTH, dtype=np.float32), np.zeros(WIDTH, np.float32))}, np.eye(WIDTH, dtype=np.float32)


def test_every_depth_dim_rotation_and_quantization_has_figures() -> None:
    found = expect_fidelity(*make_up(400), seed=0)
    assert found.keys() == {f"calibrated.1.{dim}{turned}" for dim in DIMS for turned in ("", ".rotated")}
    assert set(found["calibrated.1.8"]) == {"none", "int8", "binary"}
    assert set(found["calibrated.1.12"]) == {"none", "int8"} == set(choose_quantizations(12))
    whole, cut, bits = found["calibrated.1.16"]["none"], found["calibrated.1.8"]["none"], found["calibrated.1.8"]["binary"]
    assert whole.overlap.mean > cut.overlap.mean > bits.overlap.mean
    assert cut.cosine.mean > 0.9 > bits.cosine.mean


def test_the_deviation_is_that_of_new_samples_though_draws_share_chunks() -> None:
    draw = np.random.default_rng(1)
    cosines = draw.normal(0.8, 0.1, size=120).clip(0, 1).astype(np.float32)
    documents = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    queries = np.tile(np.array([[1, 0]], np.float32), (120, 1))
    spread = measure_draws(documents, documents, queries, [draw.choice(120, 64, replace=False) for _ in range(2000)])
    assert spread.cosine.mean == pytest.approx(cosines.mean(), abs=2e-3)
    assert spread.cosine.deviation == pytest.approx(cosines.std() / 8, rel=0.05)


def test_a_new_sample_of_the_same_kind_has_not_drifted_and_one_of_another_kind_has() -> None:
    expected = expect_fidelity(*make_up(400), seed=0)["calibrated.1.16"]["none"]
    draw = np.random.default_rng(7)
    full = unit(draw.normal(size=(64, WIDTH)).astype(np.float32))
    for noise, drifted in ((0.3, False), (0.6, True)):
        vectors = full + noise / 4 * draw.normal(size=full.shape).astype(np.float32)
        assert measure_sample(vectors, full, full, expected).drifted == drifted, noise


def test_too_few_chunks_held_out_leave_no_figures() -> None:
    assert expect_fidelity(*make_up(64), seed=0) == {}


def test_an_artifact_without_figures_for_a_spec_expects_nothing() -> None:
    spec = SPEC.model_copy(update={"exit": "calibrated", "depth": 1, "dim": 8})
    figures = {"cosine": {"mean": 0.9, "deviation": 0.01}, "overlap": {"mean": 0.8, "deviation": 0.02}}
    calibration = Calibration({}, 2, None, {}, {}, {"fidelity": {"calibrated.1.8": {"none": figures}}})  # type: ignore[arg-type]
    found = calibration.expect_fidelity(spec)
    assert found is not None
    assert found.overlap.mean == 0.8
    assert calibration.expect_fidelity(spec.model_copy(update={"dim": 4})) is None
    assert Calibration({}, 2, None, {}, {}).expect_fidelity(spec) is None  # type: ignore[arg-type]


def test_damaged_figures_are_refused_by_name() -> None:
    spec = SPEC.model_copy(update={"exit": "calibrated", "depth": 1, "dim": 8})
    for damaged in ({"fidelity": []}, {"fidelity": {"calibrated.1.8": {"none": {"cosine": {}}}}}):
        with pytest.raises(ConfigError, match=r"its held-out figures are damaged \(.*\); make it again with jobs\.calibrate"):
            Calibration({}, 2, None, {}, {}, damaged).expect_fidelity(spec)  # type: ignore[arg-type]
