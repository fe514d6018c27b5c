"""Settings × datasets → figures of quality. Vectors of a view are read once; dims, precisions and query sides are cut from them.

Q = queries or pairs, N = documents, D = dim, R = resamples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from embedder.sweep.config import Precision, QuerySide
from embedder.sweep.datasets import TOP, Retrieval, Similarity
from embedder.sweep.grid import Grid, Setting, View
from embedder.sweep.metrics import (
    NDCG,
    SPEARMAN,
    Doubles,
    correlate_rows,
    draw_resamples,
    rank_resamples,
    resample_mean,
    score_retrieval,
    spearman,
)
from embedder.sweep.retrieval import Floats, cut, find_neighbours, rank_documents, share_of_neighbours, store_vectors

NUM_NEIGHBOURS = 10
FIDELITY = "fidelity"
COSINE, OVERLAP = "cosine to full", "top-10 kept"


@dataclass(frozen=True, slots=True)
class Score:
    """Figures of one setting on one dataset."""

    metrics: Mapping[str, float]
    main: str | None = None
    """Which of them is the dataset's quality; None: none is, they only say how near the full model is."""
    resampled_R: Doubles | None = None  # noqa: N815
    """The main one over resamples of the queries; None where the dataset gives no figures by query."""


@dataclass(frozen=True, slots=True)
class Scored:
    """All settings' figures on one dataset."""

    dataset: str
    scores: Mapping[Setting, Score] = field(default_factory=dict)


def evaluate_retrieval(dataset: Retrieval, grid: Grid, seed: int) -> Scored:
    """Answer every query by every setting."""
    resamples_RQ = draw_resamples(len(dataset.queries), seed)
    full_queries = grid.full.widths(dataset.queries, "query")
    scores = {}
    for view in grid.views:
        documents = view.widths(dataset.documents, "document")
        queries = _by_side(view, full_queries, dataset.queries)
        for setting, queries_QD, stored_ND in _cuts(view, grid.precisions, queries, documents):
            ranked = rank_documents(queries_QD, stored_ND, setting.precision, TOP)
            by_query = score_retrieval(ranked, dataset)
            means = {name: float(values_Q.mean()) for name, values_Q in by_query.items()}
            scores[setting] = Score(means, NDCG, resample_mean(by_query[NDCG], resamples_RQ))
    return Scored(dataset.name, scores)


def evaluate_similarity(dataset: Similarity, grid: Grid, seed: int) -> Scored:
    """Score every pair by every setting: the first text as a query would be, the second as stored."""
    expected_Q = np.array(dataset.scores)
    resamples_RQ = draw_resamples(len(expected_Q), seed)
    expected_RQ = rank_resamples(expected_Q, resamples_RQ)
    full_firsts = grid.full.widths(dataset.firsts, "document")
    scores = {}
    for view in grid.views:
        seconds = view.widths(dataset.seconds, "document")
        firsts = _by_side(view, full_firsts, dataset.firsts, "document")
        for setting, firsts_QD, stored_QD in _cuts(view, grid.precisions, firsts, seconds):
            asked_QD = store_vectors(firsts_QD, "binary") if setting.precision == "binary" else firsts_QD
            found_Q = cosine_pairs(asked_QD, stored_QD).astype(np.float64)
            correlations_R = correlate_rows(rank_resamples(found_Q, resamples_RQ), expected_RQ)
            scores[setting] = Score({SPEARMAN: spearman(found_Q, expected_Q)}, SPEARMAN, correlations_R)
    return Scored(dataset.name, scores)


def evaluate_fidelity(documents: Sequence[str], grid: Grid, num_probes: int, seed: int) -> Scored:
    """Compare with the full model, without labels: the cosine to its vectors, and how many of its nearest neighbours are kept.

    Where a document has no more others than neighbours, any vectors keep them all, and only the cosine is given.
    """
    self_Q = np.sort(np.random.default_rng(seed).permutation(len(documents))[:num_probes])
    full_NW = grid.full.widths(documents, "document")
    full_ND = cut(full_NW, full_NW.shape[1])
    has_others = len(documents) > NUM_NEIGHBOURS + 1
    expected_QK = find_neighbours(full_ND[self_Q], full_ND, "float32", NUM_NEIGHBOURS, self_Q)
    scores = {}
    for view in grid.views:
        documents_NW = full_NW if view is grid.full else view.widths(documents, "document")
        turned_NW = view.turn(full_NW)
        probes = {side: (turned_NW if side == "full" else documents_NW)[self_Q] for side in view.query_sides}
        in_same_space = view.candidate.name == grid.full.candidate.name
        for setting, probes_QD, stored_ND in _cuts(view, grid.precisions, probes, documents_NW):
            metrics = {}
            if has_others:
                metrics[OVERLAP] = float(share_of_neighbours(probes_QD, stored_ND, setting.precision, expected_QK, self_Q).mean())
            if in_same_space:
                metrics[COSINE] = float(cosine_pairs(stored_ND, turned_NW[:, : setting.dim]).mean())
            scores[setting] = Score(metrics)
    return Scored(FIDELITY, scores)


def _by_side(view: View, full_QW: Floats, texts: Sequence[str], role: str = "query") -> dict[QuerySide, Floats]:
    """Give the queries' vectors by query side."""
    sides: dict[QuerySide, Floats] = {}
    if "same" in view.query_sides:
        sides["same"] = view.asking.widths(texts, "document" if role == "document" else "query")
    if "full" in view.query_sides:
        sides["full"] = view.turn(full_QW)
    return sides


def _cuts(
    view: View, precisions: Sequence[Precision], queries: Mapping[QuerySide, Floats], documents_NW: Floats
) -> Iterator[tuple[Setting, Floats, Floats]]:
    """Cut a view to its settings: each with its queries' vectors and its documents' as stored."""
    for dim in view.dims:
        documents_ND = cut(documents_NW, dim)
        queries_by_side = {side: cut(queries_QW, dim) for side, queries_QW in queries.items()}
        for precision in precisions:
            stored_ND = store_vectors(documents_ND, precision)
            for side, queries_QD in queries_by_side.items():
                yield view.setting(dim, precision, side), queries_QD, stored_ND


def cosine_pairs(a_ND: Floats, b_ND: Floats) -> npt.NDArray[np.float32]:
    """Give the cosine of each pair; of bits exactly, so that equal ones tie."""
    norms_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    cosines_N: npt.NDArray[np.float32] = (a_ND * b_ND).sum(axis=1) / np.maximum(norms_N, np.float32(1e-12))
    return cosines_N
