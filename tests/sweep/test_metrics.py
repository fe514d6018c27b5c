"""Metrics against cases computed by hand, and intervals of paired differences."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from embedder.sweep.datasets import Retrieval
from embedder.sweep.metrics import (
    MRR,
    NDCG,
    RECALL,
    correlate_rows,
    draw_resamples,
    interval,
    rank_resamples,
    score_retrieval,
    spearman,
)
from embedder.sweep.retrieval import Ranked


def dataset(qrels: dict[str, dict[str, int]], num_documents: int = 12) -> Retrieval:
    names = tuple(f"d{number}" for number in range(num_documents))
    return Retrieval("hand", names, names, tuple(qrels), tuple(qrels), qrels)


def test_metrics_of_a_case_ranked_by_hand() -> None:
    qrels = {"a": {"d0": 2, "d1": 1, "d2": 1}, "b": {"d5": 1}, "c": {"d11": 1}}
    order = np.array(
        [[3, 0, 4, 1, 5, 6, 7, 8, 9, 10, 11, 2], [5, 0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 10]]
    )
    found = score_retrieval(Ranked(order, -np.arange(36.0, dtype=np.float32).reshape(3, 12)), dataset(qrels))
    # a: grade 2 at rank 2, grade 1 at rank 4, the third at rank 12, beyond 10; ideal: 2, 1, 1
    dcg, ideal = 2 / math.log2(3) + 1 / math.log2(5), 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    np.testing.assert_allclose(found[NDCG], [dcg / ideal, 1, 0], atol=1e-9)
    np.testing.assert_allclose(found[RECALL], [1, 1, 1])
    np.testing.assert_allclose(found[MRR], [1 / 2, 1, 0])


@pytest.mark.parametrize(("rank", "expected"), [(10, 1 / 10), (11, 0)])
def test_mrr_counts_up_to_rank_10(rank: int, expected: float) -> None:
    order = np.array([[*range(1, rank), 0, *range(rank, 12)]])
    found = score_retrieval(Ranked(order, np.zeros((1, 12), np.float32)), dataset({"a": {"d0": 1}}))
    assert found[MRR][0] == pytest.approx(expected)


def test_ties_keep_the_order_of_the_search() -> None:
    order = np.array([[4, 9, 2, 0, 1, 3, 5, 6, 7, 8, 10, 11]])
    found = score_retrieval(Ranked(order, np.zeros((1, 12), np.float32)), dataset({"a": {"d2": 1}}))
    assert found[MRR][0] == pytest.approx(1 / 3)


def test_spearman_equals_scipys_with_ties() -> None:
    draw = np.random.default_rng(0)
    found, expected = draw.normal(size=200), draw.integers(0, 5, 200).astype(float)
    assert spearman(found, expected) == pytest.approx(spearmanr(found, expected).statistic)


def test_resampled_correlations_rank_each_resample_anew() -> None:
    draw = np.random.default_rng(1)
    found, expected = draw.normal(size=60), draw.normal(size=60)
    resamples = draw_resamples(60, 0)
    correlations = correlate_rows(rank_resamples(found, resamples), rank_resamples(expected, resamples))
    for number in (0, 17, 499):
        rows = resamples[number]
        assert correlations[number] == pytest.approx(spearmanr(found[rows], expected[rows]).statistic)


def test_a_paired_interval_detects_a_loss_smaller_than_the_spread_of_queries() -> None:
    full = np.random.default_rng(0).uniform(0, 1, 300)
    resamples = draw_resamples(300, 0)
    low, high = interval((full * 0.98)[resamples].mean(axis=1) / full[resamples].mean(axis=1))
    assert 0.979 < low <= high < 0.981
    spread = interval(full[resamples].mean(axis=1))
    assert spread[1] - spread[0] > 0.05


def test_equal_seeds_draw_equal_resamples() -> None:
    np.testing.assert_array_equal(draw_resamples(30, 4), draw_resamples(30, 4))
    assert (draw_resamples(30, 4) != draw_resamples(30, 5)).any()
