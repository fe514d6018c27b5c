"""The sample is split into enough documents held out and to fit on, and units are stored in any order."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedder.calibrate.collect import Extremes, choose_synthetic, collect, split_documents
from embedder.calibrate.config import CalibrateSettings
from embedder.calibrate.ridge import Features, Rows
from embedder.core.errors import ConfigError
from embedder.core.fidelity import unit
from embedder.model.calibration import RangeKey
from embedder.model.results import ExitStates
from embedder.pipeline.tap_actor import Kind


@pytest.mark.parametrize(
    ("count", "held_out", "problem"),
    [
        (99, 0.1, "source: only 99 documents to fit on; at least 100 are needed"),
        (100, 0.999, "calibrate.held_out=0.999: leaves 0 of 100 documents to fit on; hold out less"),
    ],
)
def test_a_sample_with_too_few_documents_to_fit_on_is_refused(count: int, held_out: float, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        split_documents(pa.table({"row": range(count)}), CalibrateSettings(held_out=held_out))


def test_enough_documents_are_held_out_to_measure_the_ten_nearest() -> None:
    split = split_documents(pa.table({"row": range(300)}), CalibrateSettings(held_out=0.01))
    assert [[len(unit) for unit in units] for units in (split.held_out, split.fitted)] == [[30], [256, 14]]
    assert sorted(pa.concat_tables([*split.held_out, *split.fitted])["row"].to_pylist()) == list(range(300))


def test_the_smaller_a_sample_the_more_synthetic_chunks_are_made_of_each_of_its_chunks() -> None:
    assert [choose_synthetic(count) for count in (0, 100, 3_000, 5_000, 7_500, 100_000)] == [9, 9, 9, 5, 3, 3]


def test_broad_text_that_the_sample_has_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    documents = pa.table({"text": [f"text {number}" for number in range(200)]})
    split = split_documents(documents, CalibrateSettings(), pa.table({"text": ["news", "text  7", "more news"]}))
    assert [unit["text"].to_pylist() for unit in split.broad] == [["news", "more news"]]
    assert "calibrate.broad: 1 of 3 documents are in the sample too and left out" in caplog.text
    assert [kind for kind, _ in split.units] == ["held_out", "fitted", "broad"]
    with pytest.raises(ConfigError, match=r"calibrate\.broad: all 200 documents drawn are in the sample too; choose text that is not"):
        split_documents(documents, CalibrateSettings(), documents)


def make_rows(folder: Path) -> Rows:
    return Rows(folder, 1, FEATURES.block, 3)


FEATURES = Features({1: (1,)}, (1,), 1, 2)


def test_units_may_arrive_in_any_order(tmp_path: Path) -> None:
    full = np.random.default_rng(0).normal(size=(4, 1, 3)).astype(np.float32)
    units = [ExitStates(np.ones((1, FEATURES.block), np.float32), {1: full[number]}, full[number]) for number in range(4)]
    unit = np.linalg.norm(full[1:, 0], axis=1, keepdims=True)
    tapped: list[tuple[Kind, int, ExitStates]] = [("held_out" if number == 0 else "fitted", 1, units[number]) for number in (3, 1, 0, 2)]
    collected = collect(tapped, 4, FEATURES, make_rows(tmp_path), Extremes((3,), normalize=True), 0)
    assert collected.rows.num_rows == 3
    np.testing.assert_array_equal(collected.held_out.full_NW, full[0])
    assert collected.known_items is None, "no text held out has a first sentence"
    np.testing.assert_allclose(collected.extremes.ranges[RangeKey("native", 1, 3)].high_D, (full[1:, 0] / unit).max(axis=0), rtol=1e-6)


def test_synthetic_chunks_and_broad_text_are_fitted_on_and_decide_nothing_else(tmp_path: Path) -> None:
    full = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
    states = [ExitStates(np.ones((4, FEATURES.block), np.float32), {1: each}, each) for each in full]
    tapped: list[tuple[Kind, int, ExitStates]] = [
        ("broad", 4, states[3]),
        ("held_out", 4, states[0]),
        ("fitted", 2, states[1]),
        ("fitted", 1, states[2]),
    ]
    collected = collect(tapped, 4, FEATURES, make_rows(tmp_path), Extremes((3,), normalize=False), 0.25)
    real = np.concatenate([full[1, :2], full[2, :1]])
    assert (collected.rows.num_rows, collected.rows.weight) == (12, 9)
    assert (collected.moments.num_rows, len(collected.held_out.full_NW)) == (3, 4)
    np.testing.assert_allclose(collected.moments.covariance_WW, np.cov(real.T, bias=True), atol=1e-7)
    np.testing.assert_array_equal(collected.extremes.ranges[RangeKey("native", 1, 3)].high_D, real.max(axis=0))
    np.testing.assert_array_equal(np.concatenate(list(collected.rows.read_real_vectors())), real)
    assert sum(map(len, collected.rows.read_real([0]))) == 3


def test_known_items_and_their_queries_are_told_from_chunks_held_out(tmp_path: Path) -> None:
    full = np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)
    ones = np.ones((70, FEATURES.block), np.float32)
    states = ExitStates(ones, {1: full}, full)
    collected = collect(
        [("held_out", 10, states), ("fitted", 70, states)], 2, FEATURES, make_rows(tmp_path), Extremes((3,), normalize=True), 0
    )
    known = collected.known_items
    assert known is not None
    np.testing.assert_array_equal(collected.held_out.full_NW, full[:10])
    np.testing.assert_array_equal(known.items.full_NW, full[10:40])
    np.testing.assert_allclose(known.queries_NW, unit(full[40:]), rtol=1e-6)
