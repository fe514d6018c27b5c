"""Exit maps and chunks held out → the spread of fidelity over small samples, to which runs compare theirs.

N = chunks, W = the full model's width, D = dim.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from embedder.calibrate.collect import Collected
from embedder.core.fidelity import SAMPLE_CHUNKS, Expected, Spread, mean_cosine, share_of_nearest, unit
from embedder.core.quantization import Floats, cut_vectors, quantize, restore
from embedder.core.spec import Quantization
from embedder.model.calibration import ExitMap, RangeKey

NUM_DRAWS = 50
"""Samples drawn: a standard deviation is then known to a tenth."""

Figures = Mapping[str, Mapping[Quantization, Expected]]
"""By the name of a range, which identifies depth, dim and rotation, and by quantization."""


def expect_fidelity(collected: Collected, maps: Mapping[int, ExitMap], rotation_WW: Floats, seed: int) -> Figures:
    """Measure the vectors of each depth and dim as tables hold them; none if no more chunks were held out than a sample has."""
    held_out, found = collected.held_out, dict[str, dict[Quantization, Expected]]()
    count, draw, extremes = len(held_out.full_NW), np.random.default_rng(seed), collected.extremes
    if count <= SAMPLE_CHUNKS:
        return found
    draws = [draw.choice(count, SAMPLE_CHUNKS, replace=False) for _ in range(NUM_DRAWS)]
    full_NW: Floats = unit(held_out.full_NW)
    for depth, exit_map in maps.items():
        mapped_NW: Floats = held_out.states_NF[:, collected.features.columns(depth)] @ exit_map.weight_FW + exit_map.bias_W
        for rotated in (False, True):
            queries_NW, documents_NW = full_NW, mapped_NW
            if rotated:
                queries_NW, documents_NW = full_NW @ rotation_WW, mapped_NW @ rotation_WW
            for dim in extremes.dims:
                key = RangeKey("calibrated", depth, dim, rotated)
                vectors_ND, own = cut_vectors(documents_NW, dim, extremes.normalize), extremes.ranges[key]
                for quantization in choose_quantizations(dim):
                    stored_ND = restore(quantize(vectors_ND, quantization, own), quantization, own)
                    spreads = measure_draws(full_NW, unit(stored_ND), cut_vectors(queries_NW, dim, normalize=True), draws)
                    found.setdefault(str(key), {})[quantization] = spreads
    return found


def choose_quantizations(dim: int) -> Sequence[Quantization]:
    """Return the quantizations that vectors of a dim can have."""
    return ("none", "int8", "binary") if dim % 8 == 0 else ("none", "int8")


def measure_draws(full_NW: Floats, documents_ND: Floats, queries_ND: Floats, draws: Sequence[npt.NDArray[np.int64]]) -> Expected:
    """Return the spread that new samples would have; draws share chunks, and are more alike."""
    figures = [
        (mean_cosine(documents_ND[rows], queries_ND[rows]), share_of_nearest(full_NW[rows], documents_ND[rows], queries_ND[rows]))
        for rows in draws
    ]
    correction = (1 - SAMPLE_CHUNKS / len(full_NW)) ** -0.5
    means, deviations = np.mean(figures, axis=0), np.std(figures, axis=0, ddof=1) * correction
    return Expected(*map(Spread, means.round(6).tolist(), deviations.round(6).tolist()))
