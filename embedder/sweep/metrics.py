"""Ranked documents and scored pairs → figures of quality by query, and how far chance may have moved them.

Q = queries or pairs, R = resamples, S = settings.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from embedder.sweep.datasets import TOP, Retrieval
from embedder.sweep.retrieval import Ranked

Doubles = npt.NDArray[np.float64]

NDCG, RECALL, MRR, SPEARMAN = "nDCG@10", "recall@100", "MRR@10", "Spearman"
_BEYOND_10 = 1 / 10.5
NUM_RESAMPLES = 500
INTERVAL = (2.5, 97.5)
"""Percentiles of the 95% interval."""


def score_retrieval(ranked: Ranked, dataset: Retrieval) -> dict[str, Doubles]:
    """Give nDCG@10, recall@100 and MRR@10 of every query, as trec_eval computes them."""
    import pytrec_eval  # extra study

    ids = np.array(dataset.document_ids, dtype=object)
    run = {
        query: dict(zip(ids[positions].tolist(), scores.tolist(), strict=True))
        for query, positions, scores in zip(dataset.query_ids, ranked.positions_QK, _without_ties(ranked), strict=True)
    }
    qrels = {query: dict(grades) for query, grades in dataset.qrels.items()}
    evaluated = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", f"recall.{TOP}", "recip_rank"}).evaluate(run)
    reciprocal_Q = _by_query(evaluated, "recip_rank", dataset.query_ids)
    return {
        NDCG: _by_query(evaluated, "ndcg_cut_10", dataset.query_ids),
        RECALL: _by_query(evaluated, f"recall_{TOP}", dataset.query_ids),
        MRR: np.where(reciprocal_Q > _BEYOND_10, reciprocal_Q, 0.0),
    }


def _without_ties(ranked: Ranked) -> Doubles:
    """Replace scores by falling ranks: trec_eval would order ties, of which bits make many, by document id."""
    ranks_QK: Doubles = np.broadcast_to(-np.arange(ranked.positions_QK.shape[1], dtype=np.float64), ranked.positions_QK.shape)
    return ranks_QK


def _by_query(evaluated: Mapping[str, Mapping[str, float]], measure: str, query_ids: Sequence[str]) -> Doubles:
    return np.array([evaluated[query][measure] for query in query_ids])


def draw_resamples(num_queries: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw queries with putting back, shape (R, Q): the same for every setting, so that differences are paired."""
    return np.random.default_rng(seed).integers(0, num_queries, (NUM_RESAMPLES, num_queries))


def resample_mean(scores_Q: Doubles, resamples_RQ: npt.NDArray[np.int64]) -> Doubles:
    """Give the mean of each resample."""
    means_R: Doubles = scores_Q[resamples_RQ].mean(axis=1)
    return means_R


def spearman(found_Q: Doubles, expected_Q: Doubles) -> float:
    """Correlate ranks."""
    every_1Q = np.arange(len(found_Q))[None]
    return float(correlate_rows(rank_resamples(found_Q, every_1Q), rank_resamples(expected_Q, every_1Q))[0])


def rank_resamples(values_Q: Doubles, resamples_RQ: npt.NDArray[np.int64]) -> Doubles:
    """Rank the values of each resample anew, shape (R, Q)."""
    from scipy.stats import rankdata  # extra study

    ranks_RQ: Doubles = rankdata(values_Q[resamples_RQ], axis=1)
    return ranks_RQ


def correlate_rows(a_RQ: Doubles, b_RQ: Doubles) -> Doubles:
    """Give Pearson's correlation of each row; of ranks, that is Spearman's. 0 where a row never varies."""
    a_RQ = a_RQ - a_RQ.mean(axis=1, keepdims=True)
    b_RQ = b_RQ - b_RQ.mean(axis=1, keepdims=True)
    norms_R = np.linalg.norm(a_RQ, axis=1) * np.linalg.norm(b_RQ, axis=1)
    correlations_R: Doubles = np.divide((a_RQ * b_RQ).sum(axis=1), norms_R, out=np.zeros(len(a_RQ)), where=norms_R > 0)
    return correlations_R


def interval(values_R: Doubles) -> tuple[float, float]:
    """Give the middle 95%."""
    low, high = np.percentile(values_R, INTERVAL)
    return float(low), float(high)
