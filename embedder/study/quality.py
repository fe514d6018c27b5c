"""How well vectors find: known-item retrieval, which needs no labels, only titles that should find their own document.

Q = queries, N = documents, D = dim.
"""

import numpy as np
import numpy.typing as npt

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
