"""Vectors of queries and documents → the best documents of each query, as an index of that precision would find them.

Q = queries, N = documents, D = dim, K = documents found.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedder.core.quantization import fit_ranges, from_binary, from_int8, to_binary, to_int8
from embedder.sweep.config import Precision

Floats = npt.NDArray[np.float32]

RESCORED = 4
"""Documents ordered by the float query for each one wanted, where bits alone found them."""
QUERIES_AT_ONCE = 256

BITS: dict[Precision, int] = {"float32": 32, "int8": 8, "binary": 1, "binary_rescored": 1}
"""Stored bits of a component."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Positions of the documents found, best first, and their scores."""

    positions_QK: npt.NDArray[np.int64]  # noqa: N815
    scores_QK: Floats  # noqa: N815


def _as_they_are(vectors_ND: Floats) -> Floats:
    return vectors_ND


def _through_int8(vectors_ND: Floats) -> Floats:
    ranges = fit_ranges(vectors_ND)
    return from_int8(to_int8(vectors_ND, ranges), ranges)


def _through_bits(vectors_ND: Floats) -> Floats:
    return from_binary(to_binary(vectors_ND))


_STORED: dict[Precision, Callable[[Floats], Floats]] = {
    "float32": _as_they_are,
    "int8": _through_int8,
    "binary": _through_bits,
    "binary_rescored": _through_bits,
}


def store_vectors(vectors_ND: Floats, precision: Precision) -> Floats:
    """Give what is left of documents' vectors once stored: int8 ranges are those of the vectors given."""
    return _STORED[precision](vectors_ND)


def rank_documents(queries_QD: Floats, stored_ND: Floats, precision: Precision, top: int) -> Ranked:
    """Find the best documents: by float queries, or where only bits are searched by the queries' bits, then perhaps rescored."""
    if not precision.startswith("binary"):
        return _find_top(queries_QD, stored_ND, top)
    found = _find_top(_through_bits(queries_QD), stored_ND, top * RESCORED if precision == "binary_rescored" else top)
    if precision == "binary":
        return found
    scores_QK = np.stack([stored_ND[row] @ query for row, query in zip(found.positions_QK, queries_QD, strict=True)])
    order_QK = np.argsort(-scores_QK, axis=1, kind="stable")[:, :top]
    return Ranked(np.take_along_axis(found.positions_QK, order_QK, 1), np.take_along_axis(scores_QK, order_QK, 1))


def _find_top(queries_QD: Floats, documents_ND: Floats, top: int) -> Ranked:
    """Score every document, and order the best; of equal scores the earlier document comes first."""
    top = min(top, len(documents_ND))
    positions, scores = [], []
    for start in range(0, len(queries_QD), QUERIES_AT_ONCE):
        scores_QN = queries_QD[start : start + QUERIES_AT_ONCE] @ documents_ND.T
        found_QK = np.argpartition(-scores_QN, top - 1, axis=1)[:, :top]
        found_QK.sort(axis=1)
        found_scores_QK = np.take_along_axis(scores_QN, found_QK, 1)
        order_QK = np.argsort(-found_scores_QK, axis=1, kind="stable")
        positions.append(np.take_along_axis(found_QK, order_QK, 1))
        scores.append(np.take_along_axis(found_scores_QK, order_QK, 1))
    return Ranked(np.concatenate(positions), np.concatenate(scores))


def share_of_neighbours(
    queries_QD: Floats, stored_ND: Floats, precision: Precision, expected_QK: npt.NDArray[np.int64], self_Q: npt.NDArray[np.int64]
) -> Floats:
    """Give by query the share of the expected neighbours that are found; a document is no neighbour of its own."""
    found_QK = find_neighbours(queries_QD, stored_ND, precision, expected_QK.shape[1], self_Q)
    shares_Q: Floats = np.array(
        [len(np.intersect1d(found, expected)) / len(expected) for found, expected in zip(found_QK, expected_QK, strict=True)], np.float32
    )
    return shares_Q


def find_neighbours(
    queries_QD: Floats, stored_ND: Floats, precision: Precision, num_neighbours: int, self_Q: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Find the documents nearest to some of them, themselves left out."""
    positions_QK = rank_documents(queries_QD, stored_ND, precision, num_neighbours + 1).positions_QK
    is_self_QK = positions_QK == self_Q[:, None]
    is_self_QK[~is_self_QK.any(axis=1), -1] = True
    others_QK: npt.NDArray[np.int64] = positions_QK[~is_self_QK].reshape(len(positions_QK), -1)
    return others_QK


Vectors = npt.NDArray[np.float32]


_TINY = np.float32(1e-12)


def cut(vectors_NH: Vectors, dim: int) -> Vectors:
    """Keep the first components and make the rest unit length again."""
    kept_ND = vectors_NH[:, :dim]
    unit_ND: Vectors = kept_ND / np.maximum(np.linalg.norm(kept_ND, axis=1, keepdims=True), _TINY)
    return unit_ND


def mean_reciprocal_rank(queries_QD: Vectors, documents_ND: Vectors, wanted_Q: npt.NDArray[np.int64], most: int = 10) -> float:
    """MRR@most: the mean over queries of 1 / rank of the wanted document, 0 beyond `most`. Ties count against it."""
    ranks = []
    for start in range(0, len(queries_QD), 256):
        scores_QN = queries_QD[start : start + 256] @ documents_ND.T
        wanted = wanted_Q[start : start + 256]
        mine_Q1 = scores_QN[np.arange(len(wanted)), wanted][:, None]
        ranks.append((scores_QN >= mine_Q1).sum(axis=1))
    rank_Q = np.concatenate(ranks)
    return float(np.where(rank_Q <= most, 1 / rank_Q, 0).mean())
