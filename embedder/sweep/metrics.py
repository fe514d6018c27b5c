"""Ranked documents and scored pairs → quality by query, and its sampling error.

Q = queries or pairs, R = resamples.
"""

import numpy as np
import numpy.typing as npt

from embedder.core.rotation import Doubles
from embedder.sweep.datasets import TOP, Retrieval
from embedder.sweep.retrieval import Ranked

NDCG, RECALL, MRR, SPEARMAN = "nDCG@10", f"recall@{TOP}", "MRR@10", "Spearman"
NUM_RESAMPLES = 500


def score_retrieval(ranked: Ranked, dataset: Retrieval) -> dict[str, Doubles]:
    """Return nDCG@10, recall@100 and MRR@10 of every query, computed by trec_eval."""
    import pytrec_eval  # extra sweep

    # trec_eval orders equal scores, frequent with bits, by document id: pass ranks instead of scores
    ids, ranks = np.array(dataset.document_ids, dtype=object), range(0, -ranked.positions_QK.shape[1], -1)
    run = {
        query: dict(zip(ids[positions].tolist(), map(float, ranks), strict=True))
        for query, positions in zip(dataset.query_ids, ranked.positions_QK, strict=True)
    }
    qrels = {query: dict(grades) for query, grades in dataset.qrels.items()}
    by_query = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", f"recall.{TOP}", "recip_rank"}).evaluate(run)
    ndcg_Q, recall_Q, reciprocal_Q = (
        np.array([by_query[query][measure] for query in dataset.query_ids]) for measure in ("ndcg_cut_10", f"recall_{TOP}", "recip_rank")
    )
    return {NDCG: ndcg_Q, RECALL: recall_Q, MRR: np.where(reciprocal_Q > 1 / 10.5, reciprocal_Q, 0.0)}


def draw_resamples(num_queries: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw queries with replacement, shape (R, Q): the same for every setting, so that differences are paired."""
    return np.random.default_rng(seed).integers(0, num_queries, (NUM_RESAMPLES, num_queries))


def spearman(found_Q: Doubles, expected_Q: Doubles) -> float:
    """Return Spearman's rank correlation."""
    all_1Q = np.arange(len(found_Q))[None]
    return float(correlate_rows(rank_resamples(found_Q, all_1Q), rank_resamples(expected_Q, all_1Q))[0])


def rank_resamples(values_Q: Doubles, resamples_RQ: npt.NDArray[np.int64]) -> Doubles:
    """Return the ranks of the values within each resample, shape (R, Q)."""
    from scipy.stats import rankdata  # extra sweep

    ranks_RQ: Doubles = rankdata(values_Q[resamples_RQ], axis=1)
    return ranks_RQ


def correlate_rows(a_RQ: Doubles, b_RQ: Doubles) -> Doubles:
    """Return Pearson's correlation of each row, 0 if one is constant; of ranks, that is Spearman's."""
    a_RQ = a_RQ - a_RQ.mean(axis=1, keepdims=True)
    b_RQ = b_RQ - b_RQ.mean(axis=1, keepdims=True)
    norms_R = np.linalg.norm(a_RQ, axis=1) * np.linalg.norm(b_RQ, axis=1)
    correlations_R: Doubles = np.divide((a_RQ * b_RQ).sum(axis=1), norms_R, out=np.zeros(len(a_RQ)), where=norms_R > 0)
    return correlations_R


def interval(values_R: Doubles) -> tuple[float, float]:
    """Return the bounds of the middle 95%."""
    low, high = np.percentile(values_R, (2.5, 97.5))
    return float(low), float(high)
