"""Settings × datasets → quality. Vectors of a view are computed once; dims, precisions and query sides are cut from them.

Q = queries or pairs, N = documents, or their chunks, D = dim, R = resamples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedder.core.quantization import Floats, cut_vectors
from embedder.core.rotation import Doubles
from embedder.sweep.candidates import Chunks, Side, Texts
from embedder.sweep.config import Precision, QuerySide
from embedder.sweep.datasets import TOP, Retrieval, Similarity
from embedder.sweep.grid import Grid, Setting, View
from embedder.sweep.metrics import NDCG, SPEARMAN, correlate_rows, draw_resamples, rank_resamples, score_retrieval, spearman
from embedder.sweep.retrieval import find_neighbors, neighbor_overlap, rank_documents, store_vectors

NUM_NEIGHBORS = 10
FIDELITY = "fidelity"
COSINE, OVERLAP = "cosine to full", "top-10 kept"


@dataclass(frozen=True, slots=True)
class Score:
    """Metrics of one setting on one dataset."""

    metrics: Mapping[str, float]
    main: str | None = None
    """Metric that counts as the dataset's quality; None: the metrics only compare vectors with the full model's."""
    resampled_R: Doubles | None = None  # noqa: N815
    """The main metric over resamples of the queries; None if the dataset has no scores by query."""


Scores = dict[Setting, Score]


def evaluate_retrieval(dataset: Retrieval, grid: Grid, seed: int, chunks: Chunks | None = None) -> Scores:
    """Run every query with every setting. Of documents in chunks, the best chunk counts."""
    starts = chunks.starts_D if chunks else None
    resamples_RQ = draw_resamples(len(dataset.queries), seed)
    scores = {}
    for view in grid.views:
        queries = _by_side(view, grid.full, dataset.queries, "query")
        documents_NW = view.embed(chunks or dataset.documents, "document")
        for setting, queries_QD, stored_ND in _cuts(view, grid.precisions, queries, documents_NW):
            by_query = score_retrieval(rank_documents(queries_QD, stored_ND, setting.precision, TOP, starts), dataset)
            means = {name: float(values_Q.mean()) for name, values_Q in by_query.items()}
            scores[setting] = Score(means, NDCG, by_query[NDCG][resamples_RQ].mean(axis=1))
    return scores


def evaluate_similarity(dataset: Similarity, grid: Grid, seed: int) -> Scores:
    """Score every pair with every setting: the first text is the query, the second is stored."""
    expected_Q = np.array(dataset.scores)
    resamples_RQ = draw_resamples(len(expected_Q), seed)
    expected_RQ = rank_resamples(expected_Q, resamples_RQ)
    scores = {}
    for view in grid.views:
        firsts = _by_side(view, grid.full, dataset.firsts, "document")
        seconds_QW = view.embed(dataset.seconds, "document")
        for setting, firsts_QD, stored_QD in _cuts(view, grid.precisions, firsts, seconds_QW):
            queries_QD = store_vectors(firsts_QD, "binary") if setting.precision == "binary" else firsts_QD
            found_Q = cosine_pairs(queries_QD, stored_QD).astype(np.float64)
            correlations_R = correlate_rows(rank_resamples(found_Q, resamples_RQ), expected_RQ)
            scores[setting] = Score({SPEARMAN: spearman(found_Q, expected_Q)}, SPEARMAN, correlations_R)
    return scores


def evaluate_fidelity(documents: Texts, grid: Grid, num_probes: int, seed: int) -> Scores:
    """Compare with the full model, without labels: cosine to its vectors, and share of its nearest neighbors that are kept.

    Among too few documents every other one is a neighbor in any space; then only the cosine is returned.
    """
    self_Q = np.sort(np.random.default_rng(seed).permutation(len(documents))[:num_probes])
    full_NW = grid.full.embed(documents, "document")
    full_ND = cut_vectors(full_NW, full_NW.shape[1], normalize=True)
    expected_QK = find_neighbors(full_ND[self_Q], full_ND, "float32", NUM_NEIGHBORS, self_Q)
    scores = {}
    for view in grid.views:
        documents_NW = full_NW if view is grid.full else view.embed(documents, "document")
        rotated_NW = view.rotate(full_NW)
        probes = {side: (rotated_NW if side == "full" else documents_NW)[self_Q] for side in view.query_sides}
        for setting, probes_QD, stored_ND in _cuts(view, grid.precisions, probes, documents_NW):
            metrics = {}
            if len(documents) > NUM_NEIGHBORS + 1:
                found_QK = find_neighbors(probes_QD, stored_ND, setting.precision, NUM_NEIGHBORS, self_Q)
                metrics[OVERLAP] = neighbor_overlap(found_QK, expected_QK)
            if setting.model == grid.reference.model:
                metrics[COSINE] = float(cosine_pairs(stored_ND, rotated_NW[:, : setting.dim]).mean())
            scores[setting] = Score(metrics)
    return scores


def _by_side(view: View, full: View, texts: Sequence[str], side: Side) -> dict[QuerySide, Floats]:
    """Return the queries' full-width vectors by query side."""
    return {
        query_side: view.rotate(full.embed(texts, side)) if query_side == "full" else view.for_queries.embed(texts, side)
        for query_side in view.query_sides
    }


def _cuts(
    view: View, precisions: Sequence[Precision], queries: Mapping[QuerySide, Floats], documents_NW: Floats
) -> Iterator[tuple[Setting, Floats, Floats]]:
    """Yield each setting of a view with its query vectors and its restored document vectors."""
    for dim in view.dims:
        documents_ND = cut_vectors(documents_NW, dim, normalize=True)
        queries_by_side = {side: cut_vectors(queries_QW, dim, normalize=True) for side, queries_QW in queries.items()}
        for precision in precisions:
            stored_ND = store_vectors(documents_ND, precision)
            for side, queries_QD in queries_by_side.items():
                yield view.setting(dim, precision, side), queries_QD, stored_ND


def cosine_pairs(a_ND: Floats, b_ND: Floats) -> Floats:
    """Return the cosine of each pair; exact for bits, so that equal pairs tie."""
    norms_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    cosines_N: Floats = (a_ND * b_ND).sum(axis=1) / np.maximum(norms_N, np.float32(1e-12))
    return cosines_N
