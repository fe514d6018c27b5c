"""Documents are found as an index of each precision finds them."""

import numpy as np
import pytest

from embedder.core.quantization import cut_vectors
from embedder.sweep.config import Precision
from embedder.sweep.retrieval import find_neighbors, mean_reciprocal_rank, neighbor_overlap, rank_documents, store_vectors


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(40, 64))
    return cut_vectors((centers[draw.integers(0, 40, 800)] + 0.6 * draw.normal(size=(800, 64))).astype(np.float32), 64, normalize=True)


def test_float_search_equals_a_full_sort(vectors: np.ndarray) -> None:
    ranked = rank_documents(vectors[:7], vectors, "float32", 20)
    np.testing.assert_array_equal(ranked.positions_QK, np.argsort(-(vectors[:7] @ vectors.T), axis=1)[:, :20])
    assert (np.diff(ranked.scores_QK, axis=1) <= 0).all()


def test_a_search_for_more_documents_than_exist_returns_all(vectors: np.ndarray) -> None:
    assert rank_documents(vectors[:2], vectors[:5], "float32", 100).positions_QK.shape == (2, 5)


def test_bits_are_scored_by_the_number_of_equal_bits(vectors: np.ndarray) -> None:
    ranked = rank_documents(vectors[:3], store_vectors(vectors, "binary"), "binary", 5)
    agree = ((vectors[:3, None] > 0) == (vectors[None] > 0)).sum(axis=2)
    np.testing.assert_array_equal(ranked.scores_QK, 2 * np.sort(agree, axis=1)[:, ::-1][:, :5] - 64)


def test_precisions_keep_more_neighbors_the_more_they_store(vectors: np.ndarray) -> None:
    probes = np.arange(100)
    expected = find_neighbors(vectors[:100], vectors, "float32", 10, probes)
    kept = {
        precision: neighbor_overlap(find_neighbors(vectors[:100], store_vectors(vectors, precision), precision, 10, probes), expected)
        for precision in ("float32", "int8", "binary", "binary_rescored")
    }
    assert kept["float32"] == 1
    assert kept["int8"] > 0.95
    assert kept["int8"] > kept["binary_rescored"] > kept["binary"] + 0.02


def test_overlap_is_the_share_of_expected_neighbors() -> None:
    assert neighbor_overlap(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [4, 3]])) == 0.75


def test_a_document_is_not_its_own_neighbor_among_equal_ones(vectors: np.ndarray) -> None:
    same = np.repeat(vectors[:1], 30, axis=0)
    for precision in ("float32", "binary"):
        found = find_neighbors(same[:20], same, precision, 5, np.arange(20))
        assert found.shape == (20, 5)
        assert not (found == np.arange(20)[:, None]).any()


def test_the_mean_reciprocal_rank_of_a_case_ranked_by_hand() -> None:
    documents_ND = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    queries_QD = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    # similarities 1, 0.8, 0: the wanted documents rank first, second and third
    assert mean_reciprocal_rank(queries_QD, documents_ND, np.array([0, 1, 2])) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert mean_reciprocal_rank(queries_QD, documents_ND, np.array([0, 1, 2]), most=2) == pytest.approx((1 + 1 / 2) / 3)


def test_ties_count_against_the_wanted_document() -> None:
    same_ND = np.ones((4, 2), np.float32)
    assert mean_reciprocal_rank(same_ND[:1], same_ND, np.array([0])) == 1 / 4


@pytest.mark.parametrize("precision", ["float32", "int8", "binary", "binary_rescored"])
def test_a_document_of_several_chunks_has_the_score_of_its_best(vectors: np.ndarray, precision: Precision) -> None:
    starts, stored = np.array([0, 3, 4, 90, 200]), store_vectors(vectors[:300], precision)
    found = rank_documents(vectors[:9], stored, precision, 4, starts)
    queries = store_vectors(vectors[:9], "binary") if precision == "binary" else vectors[:9]
    best = np.stack([scores.max(axis=1) for scores in np.split(queries @ stored.T, starts[1:], axis=1)], axis=1)
    np.testing.assert_allclose(found.scores_QK, -np.sort(-best, axis=1)[:, :4], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(best, found.positions_QK, 1), found.scores_QK, rtol=1e-5)
