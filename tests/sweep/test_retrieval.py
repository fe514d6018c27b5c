"""Documents are found as an index of each precision finds them."""

import numpy as np
import pytest

from embedder.sweep.retrieval import cut, find_neighbours, rank_documents, share_of_neighbours, store_vectors


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(40, 64))
    return cut((centres[draw.integers(0, 40, 800)] + 0.6 * draw.normal(size=(800, 64))).astype(np.float32), 64)


def test_float_search_is_a_full_sort(vectors: np.ndarray) -> None:
    ranked = rank_documents(vectors[:7], vectors, "float32", 20)
    np.testing.assert_array_equal(ranked.positions_QK, np.argsort(-(vectors[:7] @ vectors.T), axis=1)[:, :20])
    assert (np.diff(ranked.scores_QK, axis=1) <= 0).all()


def test_more_documents_than_there_are_give_all(vectors: np.ndarray) -> None:
    assert rank_documents(vectors[:2], vectors[:5], "float32", 100).positions_QK.shape == (2, 5)


def test_bits_are_searched_by_the_number_that_agree(vectors: np.ndarray) -> None:
    ranked = rank_documents(vectors[:3], store_vectors(vectors, "binary"), "binary", 5)
    agree = ((vectors[:3, None] > 0) == (vectors[None] > 0)).sum(axis=2)
    np.testing.assert_array_equal(ranked.scores_QK, 2 * np.sort(agree, axis=1)[:, ::-1][:, :5] - 64)


def test_rescoring_brings_bits_nearer_to_floats_and_int8_is_nearer_still(vectors: np.ndarray) -> None:
    probes = np.arange(100)
    expected = find_neighbours(vectors[:100], vectors, "float32", 10, probes)
    kept = {
        precision: share_of_neighbours(vectors[:100], store_vectors(vectors, precision), precision, expected, probes).mean()
        for precision in ("float32", "int8", "binary", "binary_rescored")
    }
    assert kept["float32"] == 1
    assert kept["int8"] > 0.95
    assert kept["int8"] > kept["binary_rescored"] > kept["binary"] + 0.02


def test_a_document_is_not_its_own_neighbour_even_among_equals(vectors: np.ndarray) -> None:
    same = np.repeat(vectors[:1], 30, axis=0)
    for precision in ("float32", "binary"):
        found = find_neighbours(same[:20], same, precision, 5, np.arange(20))
        assert found.shape == (20, 5)
        assert not (found == np.arange(20)[:, None]).any()
