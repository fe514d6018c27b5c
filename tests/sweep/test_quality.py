"""Known-item retrieval, checked against cases small enough to rank by hand."""

import numpy as np
import pytest

from embedder.sweep.retrieval import cut, mean_reciprocal_rank


def test_the_mean_reciprocal_rank_of_a_case_ranked_by_hand() -> None:
    documents_ND = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    queries_QD = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    # similarities 1, 0.8, 0: the wanted documents are first, second and third
    assert mean_reciprocal_rank(queries_QD, documents_ND, np.array([0, 1, 2])) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert mean_reciprocal_rank(queries_QD, documents_ND, np.array([0, 1, 2]), most=2) == pytest.approx((1 + 1 / 2) / 3)


def test_ties_count_against_the_wanted_document() -> None:
    same_ND = np.ones((4, 2), np.float32)
    assert mean_reciprocal_rank(same_ND[:1], same_ND, np.array([0])) == 1 / 4


def test_a_cut_vector_has_unit_length() -> None:
    vectors_NH = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(cut(vectors_NH, 3), axis=1), 1, rtol=1e-6)
