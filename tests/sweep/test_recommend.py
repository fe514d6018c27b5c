"""Rows relative to the full model, the front, and the recommended setting with its reason."""

import numpy as np
import pytest

from embedder.core.errors import ConfigError
from embedder.sweep.config import PickConfig
from embedder.sweep.cost import Corpus, Cost, Prices, Speed, project
from embedder.sweep.evaluate import Score, Scores
from embedder.sweep.grid import Setting
from embedder.sweep.recommend import Row, build_rows, choose_row, find_front, rank_cost

FULL = Setting("m", 6, 384, "float32", "native", "same")
SHALLOW = Setting("m", 3, 384, "float32", "native", "same")
SMALL = Setting("m", 6, 96, "int8", "native", "same")
FULL_QUERIES = Setting("m", 3, 384, "float32", "native", "full")
RIVAL = Setting("other", 12, 768, "float32", "native", "same")
CORPUS = Corpus(1000, 1000, 3_600_000, is_estimate=False)
HOURLY = Prices(2.0, None, 12)
RATES = {6: 1000.0, 3: 2000.0, 12: 500.0}
SHARES = {FULL: 1.0, SHALLOW: 0.8, SMALL: 0.98, FULL_QUERIES: 0.9, RIVAL: 1.1}


def costs(prices: Prices = HOURLY) -> dict[Setting, Cost]:
    return {each: project(Speed(RATES[each.depth], RATES[each.depth] / 1000, 1), CORPUS, each.bytes_per_vector, prices) for each in SHARES}


def scored(spread: float = 0.0) -> Scores:
    """Score every setting; `spread` is the interval's half width in shares of the full model's 0.5."""
    noise = np.linspace(-spread, spread, 500)
    return {
        each: Score({"nDCG@10": 0.5 * share}, "nDCG@10", np.full(500, 0.5) * (share + (noise if each != FULL else 0)))
        for each, share in SHARES.items()
    }


def rows_of(spread: float = 0.0, prices: Prices = HOURLY) -> dict[Setting, Row]:
    return {row.setting: row for row in build_rows({"set": scored(spread)}, costs(prices), FULL)}


def choose(rows: dict[Setting, Row], **pick: float) -> tuple[Setting | None, str]:
    row, why = choose_row(list(rows.values()), rows[FULL], PickConfig(**pick))
    return (row.setting if row else None), why


def test_time_money_and_bytes_scale_to_the_corpus() -> None:
    cost = project(Speed(1000, 1.0, 7), CORPUS, 96, Prices(2.0, 0.1, 12))
    assert (cost.seconds, cost.embed_usd, cost.index_bytes, cost.model_bytes) == (3600, 2.0, 96_000, 7)
    assert cost.usd == pytest.approx(2.0 + 96_000 / 1e9 * 0.1 * 12)
    assert project(Speed(1000, 1.0, 7), CORPUS, 96, Prices(None, 0.1, 12)).usd is None


def test_quality_is_relative_to_the_full_models() -> None:
    rows = rows_of(0.01)
    kept = rows[SMALL].kept
    assert kept is not None
    assert (kept.quality, kept.share) == pytest.approx((0.49, 0.98))
    assert (kept.low, kept.high) == pytest.approx((0.9705, 0.9895), abs=1e-4)
    assert not kept.within_noise
    wide = rows_of(0.05)[SMALL].kept
    assert wide is not None
    assert wide.within_noise


def test_datasets_are_averaged_and_a_setting_missing_in_one_has_no_quality() -> None:
    other = {FULL: Score({"Spearman": 0.9}, "Spearman", np.full(500, 0.9)), SMALL: Score({"Spearman": 0.6}, "Spearman", None)}
    fidelity = {each: Score({"cosine": 1.0}) for each in SHARES}
    rows = {row.setting: row for row in build_rows({"set": scored(), "sts": other, "fidelity": fidelity}, costs(), FULL)}
    kept = rows[SMALL].kept
    assert kept is not None
    assert kept.share == pytest.approx((0.49 + 0.6) / (0.5 + 0.9))
    assert rows[SHALLOW].kept is None
    assert set(rows[SHALLOW].metrics) == {"set", "fidelity"}


def test_a_full_model_that_scores_zero_is_refused() -> None:
    nothing = {each: Score({"nDCG@10": 0.0}, "nDCG@10", np.zeros(500)) for each in SHARES}
    with pytest.raises(ConfigError, match=r"the full model scores 0\.000"):
        build_rows({"set": nothing}, costs(), FULL)


def test_resamples_in_which_the_full_model_scores_zero_are_ignored() -> None:
    some = np.where(np.arange(500) < 50, 0.0, 0.2)
    found = {each: Score({"nDCG@10": 0.18}, "nDCG@10", some) for each in SHARES}
    for row in build_rows({"set": found}, costs(), FULL):
        assert row.kept is not None
        assert (row.kept.low, row.kept.high) == (1, 1)


def test_the_cheapest_that_keeps_enough_is_recommended() -> None:
    assert choose(rows_of(), min_quality=0.97)[0] == SMALL
    assert choose(rows_of(), min_quality=0.7)[0] == SMALL, "half the time costs less than a sixteenth of the index"
    assert choose(rows_of(), min_quality=0.99)[0] == FULL


def test_quality_is_judged_by_the_lower_end_of_the_interval() -> None:
    assert choose(rows_of(0.005), min_quality=0.97)[0] == SMALL
    assert choose(rows_of(0.02), min_quality=0.97)[0] == FULL


def test_queries_of_another_depth_and_other_models_are_never_recommended() -> None:
    rows = {setting: row for setting, row in rows_of().items() if setting in (FULL, FULL_QUERIES, RIVAL)}
    assert choose(rows, min_quality=0.85)[0] == FULL


def test_a_budget_picks_the_best_affordable_setting() -> None:
    rows = rows_of()
    assert choose(rows, budget_usd=1.5) == (
        SHALLOW,
        "the cheapest of those that no affordable setting is clearly better than, for at most $1.50",
    )
    assert choose(rows, budget_usd=5.0)[0] == FULL
    assert choose(rows_of(0.03), budget_usd=5.0)[0] == FULL, "the full model's own interval is a point"


def test_if_nothing_fits_the_nearest_settings_are_named() -> None:
    chosen, why = choose(rows_of(), budget_usd=1.5, min_quality=0.97)
    assert chosen is None
    assert "the cheapest that keeps 97.0% costs $2.00" in why
    assert "the best for $1.50 keeps 80.0% (depth 3 × dim 384 float32)" in why


def test_without_quality_data_the_reason_names_what_to_set() -> None:
    fidelity = {each: Score({"cosine": 1.0}) for each in SHARES}
    rows = {row.setting: row for row in build_rows({"fidelity": fidelity}, costs(), FULL)}
    assert choose(rows) == (None, "no setting fits: quality was not measured; add labels, or set quality.known_item")


def test_with_both_prices_settings_are_ordered_by_money() -> None:
    rows = rows_of(prices=Prices(2.0, 1e6, 12))
    assert rank_cost(rows[SHALLOW], rows[FULL]) == pytest.approx(1 + 1000 * 384 * 4 / 1e9 * 1e6 * 12)
    assert choose(rows, min_quality=0.7)[0] == SMALL
    cheap_index = rows_of(prices=Prices(2.0, 0.0, 12))
    assert choose(cheap_index, min_quality=0.7)[0] == SHALLOW


def test_the_front_rises_with_cost() -> None:
    rows = rows_of()
    front = find_front(list(rows.values()), rows[FULL])
    assert [row.setting for row in front] == [SMALL, FULL, RIVAL]
