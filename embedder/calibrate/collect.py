"""A sample of documents → units, and the states and vectors of the tapped units → sums, chunks held out, and ranges of int8.

N = chunks, F = features, W = the full model's width, D = dim.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.calibrate.config import CalibrateSettings
from embedder.calibrate.fit import KnownItems
from embedder.calibrate.ridge import Features, Moments, Sums
from embedder.core.errors import ConfigError
from embedder.core.fidelity import unit
from embedder.core.quantization import Floats, Ranges, fit_ranges
from embedder.core.spec import Exit
from embedder.model.calibration import ExitMap, RangeKey
from embedder.model.results import ExitStates

UNIT_DOCUMENTS = 256
LEAST_DOCUMENTS = 100
LEAST_HELD_OUT = 30
"""Fewest documents held out. Among fewer, the ten nearest are a large share of all, and any vectors find them."""
LEAST_FITTED = 10

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class Split:
    """Documents in random order, in units of up to UNIT_DOCUMENTS."""

    held_out: Sequence[pa.Table]
    fitted: Sequence[pa.Table]


def split_documents(documents: pa.Table, settings: CalibrateSettings) -> Split:
    """Shuffle the documents, and hold out a share of them."""
    count = documents.num_rows
    if count < LEAST_DOCUMENTS:
        raise ConfigError(f"source: only {count} documents to fit on; at least {LEAST_DOCUMENTS} are needed")
    held_out = max(LEAST_HELD_OUT, round(settings.held_out * count))
    if count - held_out < LEAST_FITTED:
        raise ConfigError(
            f"calibrate.held_out={settings.held_out}: leaves {count - held_out} of {count} documents to fit on; "
            f"hold out less, so that at least {LEAST_FITTED} remain, and preferably most of them"
        )
    shuffled = documents.take(pa.array(np.random.default_rng(settings.seed).permutation(count)))
    parts = (shuffled.slice(0, held_out), shuffled.slice(held_out))
    return Split(*([part.slice(start, UNIT_DOCUMENTS) for start in range(0, len(part), UNIT_DOCUMENTS)] for part in parts))


class Extremes:
    """Smallest and largest value of each component, for each kind of vector."""

    def __init__(self, dims: Sequence[int], normalize: bool) -> None:
        self.dims, self.normalize = dims, normalize
        self.ranges: dict[RangeKey, Ranges] = {}

    def add(self, exit_name: Exit, depth: int, vectors_NW: Floats, rotated: bool = False) -> None:
        """Add full-width vectors, cut to every dim."""
        for dim in self.dims:
            found = fit_ranges(unit(vectors_NW[:, :dim]) if self.normalize else vectors_NW[:, :dim])
            key = RangeKey(exit_name, depth, dim, rotated)
            before = self.ranges.get(key, found)
            self.ranges[key] = Ranges(np.minimum(found.low_D, before.low_D), np.maximum(found.high_D, before.high_D))


@dataclass(frozen=True, slots=True)
class Collected:
    """Results of one pass over the sample."""

    features: Features
    sums: Sums
    """Of the chunks fitted on, synthetic ones included."""
    moments: Moments
    """Of the full model's vectors of the chunks fitted on, without synthetic ones."""
    held_out: ExitStates
    known_items: KnownItems | None
    """None: too few texts held out have a first sentence."""
    files: tuple[Path, ...]
    """States and vectors of each fitted unit, without synthetic chunks."""
    extremes: Extremes
    """Of the raw exits."""


def collect(tapped: Iterable[tuple[int, int, ExitStates]], split: Split, features: Features, folder: Path, extremes: Extremes) -> Collected:
    """Sum up units as they arrive. Memory holds the sums, the chunks held out and one unit.

    A unit is its number, how many chunks it has, and the states of these and of what follows: synthetic chunks, which maps alone are
    fitted on, or known items and as many queries.
    """
    sums: Sums | None = None
    held: list[ExitStates] = []
    items: list[ExitStates] = []
    queries: list[Floats] = []
    files: list[Path] = []
    for done, (number, num_real, states) in enumerate(tapped, 1):
        logger.info("%d of %d units tapped", done, len(split.held_out) + len(split.fitted))
        if number < len(split.held_out):
            middle = (num_real + len(states.full_NW)) // 2
            held.append(states.rows(0, num_real))
            items.append(states.rows(num_real, middle))
            queries.append(states.full_NW[middle:])
            continue
        if sums is None:
            width = states.full_NW.shape[1]
            sums, moments = Sums(len(features.tapped), features.block, width, features.pairs), Moments(width)
        sums.add(states.states_NF, states.full_NW)
        moments.add(states.full_NW[:num_real])
        for depth, native_NW in states.native.items():
            extremes.add("native", depth, native_NW[:num_real])
        files.append(folder / f"{number}.npz")
        np.savez(files[-1], states=states.states_NF[:num_real], full=states.full_NW[:num_real])
    assert sums is not None
    queries_NW = np.concatenate(queries)
    known = KnownItems(join_states(items), unit(queries_NW)) if len(queries_NW) >= LEAST_HELD_OUT else None
    return Collected(features, sums, moments, join_states(held), known, tuple(files), extremes)


def join_states(parts: Sequence[ExitStates]) -> ExitStates:
    """Concatenate units."""
    return ExitStates(
        np.concatenate([each.states_NF for each in parts]),
        {depth: np.concatenate([each.native[depth] for each in parts]) for depth in parts[0].native},
        np.concatenate([each.full_NW for each in parts]),
    )


def add_ranges(collected: Collected, maps: Mapping[int, ExitMap], rotation_WW: Floats, full_depth: int | None) -> None:
    """Add the extremes of the mapped vectors and, at the full depth, of the full model's rotated vectors, one unit at a time."""
    for file in collected.files:
        with np.load(file) as arrays:
            states_NF, full_NW = arrays["states"], arrays["full"]
        for depth, exit_map in maps.items():
            mapped_NW = states_NF[:, collected.features.columns(depth)] @ exit_map.weight_FW + exit_map.bias_W
            collected.extremes.add("calibrated", depth, mapped_NW)
            collected.extremes.add("calibrated", depth, mapped_NW @ rotation_WW, rotated=True)
        if full_depth is not None:
            collected.extremes.add("native", full_depth, full_NW @ rotation_WW, rotated=True)
