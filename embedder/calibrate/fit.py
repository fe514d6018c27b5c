"""A sample and chunks held out → a map for each depth, and how closely its vectors match the full model's.

N = chunks, F = features, W = the full model's width, X = columns.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embedder.calibrate.ridge import AffineMap, Features, Rows, Solution
from embedder.core.fidelity import NUM_NEAREST, Fidelity, measure_fidelity, share_of_nearest, unit
from embedder.core.quantization import Floats
from embedder.model.calibration import ExitMap
from embedder.model.results import ExitStates

FEW_ROWS = 2
"""Chunks per feature of a map. With fewer, a larger sample would improve the map much."""

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class ExitReport:
    """One depth: the map's parameters, and the fidelity of the calibrated and the raw exit on chunks held out."""

    depth: int
    num_features: int
    strength: float
    calibrated: Fidelity
    native: Fidelity
    known_item: float | None = None
    """nDCG@10 of full-model queries, the first sentences of documents held out, over the calibrated vectors of the rest of these."""


@dataclass(frozen=True, slots=True)
class KnownItems:
    """Texts held out, without their first sentences, and the full model's vectors of these sentences as queries, of length 1."""

    items: ExitStates
    queries_NW: Floats  # noqa: N815

    @property
    def found(self) -> float:
        """nDCG@10 over the full model's vectors."""
        return find_own(self.queries_NW, unit(self.items.full_NW))


@dataclass(frozen=True, slots=True)
class CutReport:
    """One dim: the share of the ten nearest chunks by full vectors that truncated vectors find, unrotated and rotated first."""

    dim: int
    plain: float
    rotated: float


def fit_exits(
    rows: Rows, held_out: ExitStates, features: Features, strengths: Sequence[float], search: KnownItems | None = None
) -> tuple[dict[int, ExitMap], tuple[ExitReport, ...]]:
    """Fit a map for each depth, at the strength with the highest cosine to the full model on chunks held out.

    Strengths are tried from that of the depth before, in the direction in which the cosine rises.
    """
    rows.hold_out(held_out.states_NF)
    maps, reports, ordered = {}, [], sorted(set(strengths))
    place = len(ordered) // 2
    for depth, layers in features.layers.items():
        columns = features.columns(depth)
        place, fidelity, best = _fit_depth(rows.fit(features.blocks(depth)), ordered, place, held_out.full_NW)
        maps[depth] = ExitMap(layers, best.weight_FW, best.bias_W)
        native = measure_fidelity(held_out.native[depth], held_out.full_NW)
        found = find_own(search.queries_NW, unit(best.apply(search.items.states_NF[:, columns]))) if search else None
        reports.append(ExitReport(depth, len(columns), ordered[place], fidelity, native, found))
        if rows.weight < FEW_ROWS * len(columns):
            logger.warning(
                "depth %d: %.0f chunks, all by their weight, are few for %d features (held out: cosine %.3f, overlap %.2f); "
                "raise calibrate.num_documents",
                *(depth, rows.weight, len(columns), fidelity.cosine, fidelity.overlap),
            )
    return maps, tuple(reports)


def _fit_depth(
    solve: Callable[[float], Solution], strengths: Sequence[float], place: int, full_NW: Floats
) -> tuple[int, Fidelity, AffineMap]:
    """Return the place of the best strength near the given one, its fidelity and its map. No solution, and so no matrix, outlives it."""
    scored = dict[int, tuple[Fidelity, Solution]]()
    while missing := set(range(max(place - 1, 0), min(place + 2, len(strengths)))) - scored.keys():
        for each in missing:
            solution = solve(strengths[each])
            scored[each] = measure_fidelity(solution.predict(), full_NW), solution
        place = max(scored, key=lambda each: scored[each][0].cosine)
    fidelity, solution = scored[place]
    return place, fidelity, solution.make_map()


def measure_cuts(full_NW: Floats, rotation_WW: Floats, dims: Sequence[int]) -> tuple[CutReport, ...]:
    """Truncate vectors of the full model to each dim below the full width, unrotated and rotated first."""
    full_NW = unit(full_NW)
    rotated_NW = full_NW @ rotation_WW
    reports = []
    for dim in dims:
        if dim < full_NW.shape[1]:
            plain, rotated = (share_of_nearest(full_NW, unit(each_NW[:, :dim])) for each_NW in (full_NW, rotated_NW))
            reports.append(CutReport(dim, plain, rotated))
    return tuple(reports)


def find_own(queries_NW: Floats, documents_NW: Floats) -> float:
    """Return nDCG@10 of queries that each look for the document in their own row; all of length 1."""
    places = []
    for start in range(0, len(queries_NW), 512):
        scores = queries_NW[start : start + 512] @ documents_NW.T
        own = scores[np.arange(len(scores)), start + np.arange(len(scores))]
        places.append((scores > own[:, None]).sum(axis=1))
    place_N = np.concatenate(places)
    return float(np.where(place_N < NUM_NEAREST, 1 / np.log2(place_N + 2), 0).mean())
