"""Query and document vectors → the best documents of each query, as an index of that precision returns them.

Q = queries, N = documents, or their chunks, D = dim, K = documents found.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedder.core.quantization import Floats, fit_ranges, quantize, restore
from embedder.core.spec import Quantization
from embedder.sweep.config import Precision

Positions = npt.NDArray[np.int64]

RESCORED = 4
"""Documents reranked by the float query for each one wanted, where bits alone found them."""
QUERIES_AT_ONCE = 256

BITS: dict[Precision, int] = {"float32": 32, "int8": 8, "binary": 1, "binary_rescored": 1}
"""Stored bits of a component."""
QUANTIZATION: dict[Precision, Quantization] = {"float32": "none", "int8": "int8", "binary": "binary", "binary_rescored": "binary"}


@dataclass(frozen=True, slots=True)
class Ranked:
    """Positions of the documents found, best first, and their scores."""

    positions_QK: Positions  # noqa: N815
    scores_QK: Floats  # noqa: N815


def store_vectors(vectors_ND: Floats, precision: Precision) -> Floats:
    """Return vectors as they are restored from storage; int8 ranges are fitted on these vectors."""
    quantization = QUANTIZATION[precision]
    ranges = fit_ranges(vectors_ND) if quantization == "int8" else None
    return restore(quantize(vectors_ND, quantization, ranges), quantization, ranges)


def rank_documents(queries_QD: Floats, stored_ND: Floats, precision: Precision, top: int, starts: Positions | None = None) -> Ranked:
    """Return the best documents; bits are searched by the queries' bits, then reranked by the float query if `precision` says so.

    `starts` is the first chunk of each document, which its best chunk stands for; None: each is one.
    """
    if not precision.startswith("binary"):
        return _find_top(queries_QD, stored_ND, top, starts)
    wanted = top * RESCORED if precision == "binary_rescored" else top
    found = _find_top(store_vectors(queries_QD, "binary"), stored_ND, wanted, starts)
    if precision == "binary":
        return found
    if starts is None:
        rescored = [stored_ND[row] @ query for row, query in zip(found.positions_QK, queries_QD, strict=True)]
    else:
        scored = (_score(query[None], stored_ND, starts)[0] for query in queries_QD)
        rescored = [scores_N[row] for row, scores_N in zip(found.positions_QK, scored, strict=True)]
    return _order(found.positions_QK, np.stack(rescored), top)


def _score(queries_QD: Floats, stored_ND: Floats, starts: Positions | None) -> Floats:
    """Return the score of each document, that of its best chunk."""
    scores_QN: Floats = queries_QD @ stored_ND.T
    return scores_QN if starts is None else np.maximum.reduceat(scores_QN, starts, axis=1)


def _find_top(queries_QD: Floats, stored_ND: Floats, top: int, starts: Positions | None) -> Ranked:
    """Score every document and return the best; among equal scores the earlier document is first."""
    top = min(top, len(stored_ND if starts is None else starts))
    blocks = []
    for start in range(0, len(queries_QD), QUERIES_AT_ONCE):
        scores_QN = _score(queries_QD[start : start + QUERIES_AT_ONCE], stored_ND, starts)
        found_QK = np.sort(np.argpartition(-scores_QN, top - 1, axis=1)[:, :top], axis=1)
        blocks.append(_order(found_QK, np.take_along_axis(scores_QN, found_QK, 1), top))
    return Ranked(np.concatenate([each.positions_QK for each in blocks]), np.concatenate([each.scores_QK for each in blocks]))


def _order(positions_QK: Positions, scores_QK: Floats, top: int) -> Ranked:
    order_QK = np.argsort(-scores_QK, axis=1, kind="stable")[:, :top]
    return Ranked(np.take_along_axis(positions_QK, order_QK, 1), np.take_along_axis(scores_QK, order_QK, 1))


def find_neighbors(queries_QD: Floats, stored_ND: Floats, precision: Precision, num_neighbors: int, self_Q: Positions) -> Positions:
    """Return the nearest documents of each query document, without itself."""
    positions_QK = rank_documents(queries_QD, stored_ND, precision, num_neighbors + 1).positions_QK
    is_self_QK = positions_QK == self_Q[:, None]
    is_self_QK[~is_self_QK.any(axis=1), -1] = True
    others_QK: Positions = positions_QK[~is_self_QK].reshape(len(positions_QK), -1)
    return others_QK


def neighbor_overlap(found_QK: Positions, expected_QK: Positions) -> float:
    """Return the mean share of the expected neighbors that are found."""
    return float((found_QK[:, :, None] == expected_QK[:, None]).any(axis=1).mean())


def mean_reciprocal_rank(queries_QD: Floats, documents_ND: Floats, wanted_Q: Positions, most: int = 10) -> float:
    """Return MRR@`most` of the wanted documents; ties count against them."""
    scores_QN = queries_QD @ documents_ND.T
    rank_Q = (scores_QN >= np.take_along_axis(scores_QN, wanted_Q[:, None], 1)).sum(axis=1)
    return float(np.where(rank_Q <= most, 1 / rank_Q, 0).mean())
