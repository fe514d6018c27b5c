"""A sample of documents → units, and the states and vectors of the tapped units → rows to fit on, chunks held out, and ranges of int8.

N = chunks, F = features, W = the full model's width, D = dim.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from embedder.calibrate.config import CalibrateSettings
from embedder.calibrate.fit import KnownItems
from embedder.calibrate.memory import SampleSize
from embedder.calibrate.ridge import Features, Moments, Rows
from embedder.core.errors import ConfigError
from embedder.core.fidelity import unit
from embedder.core.quantization import Floats, Ranges, fit_ranges
from embedder.core.spec import Exit
from embedder.core.text_hashes import hash_texts
from embedder.model.calibration import ExitMap, RangeKey
from embedder.model.results import ExitStates
from embedder.pipeline.tap_actor import Kind

UNIT_DOCUMENTS = 256
LEAST_DOCUMENTS = 100
LEAST_HELD_OUT = 30
"""Fewest documents held out. Among fewer, the ten nearest are a large share of all, and any vectors find them."""
LEAST_FITTED = 10
SYNTHETIC, MOST_SYNTHETIC = 3.0, 9.0
"""For each chunk that is fitted on."""
ENOUGH_CHUNKS = 30_000
"""Chunks, with synthetic ones, from which more of these than SYNTHETIC bring little."""

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class Split:
    """Documents in random order, in units of up to UNIT_DOCUMENTS."""

    held_out: Sequence[pa.Table]
    fitted: Sequence[pa.Table]
    broad: Sequence[pa.Table] = ()
    """Text beside the sample."""

    @property
    def units(self) -> list[tuple[Kind, pa.Table]]:
        """All units, each with its kind."""
        held_out: list[tuple[Kind, pa.Table]] = [("held_out", unit) for unit in self.held_out]
        return [*held_out, *(("fitted", unit) for unit in self.fitted), *(("broad", unit) for unit in self.broad)]

    def measure(self, num_fitted: int, synthetic: float, num_broad: int) -> SampleSize:
        """Return the numbers of chunks, from those of the sample fitted on and of the broad text; those held out are estimated."""
        per_document, more = num_fitted / sum(map(len, self.fitted)), 1 + max(synthetic, 1)
        held_out = round(per_document * sum(map(len, self.held_out)))
        fitted = num_fitted + round(synthetic * num_fitted)
        return SampleSize(fitted + num_broad, 2 * held_out, round(UNIT_DOCUMENTS * per_document * more))


def choose_synthetic(num_fitted: int) -> float:
    """Return the synthetic chunks for each of so many chunks that are fitted on."""
    return min(MOST_SYNTHETIC, max(SYNTHETIC, ENOUGH_CHUNKS / max(1, num_fitted) - 1))


def split_documents(documents: pa.Table, settings: CalibrateSettings, broad: pa.Table | None = None) -> Split:
    """Shuffle the documents, and hold out a share of them. Broad text that the sample has as well is left out."""
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
    parts = [shuffled.slice(0, held_out), shuffled.slice(held_out)]
    if broad is not None:
        parts.append(drop_known(broad, documents))
    return Split(*([part.slice(start, UNIT_DOCUMENTS) for start in range(0, len(part), UNIT_DOCUMENTS)] for part in parts))


def drop_known(broad: pa.Table, documents: pa.Table) -> pa.Table:
    """Leave out texts of the sample: some of them are held out to measure the maps. ConfigError if none remains."""
    kept, known = (hash_texts(each["text"].to_pylist()) for each in (broad, documents))
    others = broad.filter(pa.array(~np.isin(kept, known)))
    if not others.num_rows:
        raise ConfigError(
            f"calibrate.broad: all {broad.num_rows} documents drawn are in the sample too; choose text that is not of the corpus"
        )
    if len(others) < len(broad):
        logger.warning("calibrate.broad: %d of %d documents are in the sample too and left out", len(broad) - len(others), len(broad))
    return others


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
    rows: Rows
    """The chunks fitted on, with synthetic and broad ones."""
    moments: Moments
    """Of the full model's vectors of the sample's own chunks that are fitted on."""
    held_out: ExitStates
    known_items: KnownItems | None
    """None: too few texts held out have a first sentence."""
    extremes: Extremes
    """Of the raw exits."""


def collect(
    tapped: Iterable[tuple[Kind, int, ExitStates]], num_units: int, features: Features, rows: Rows, extremes: Extremes, broad_weight: float
) -> Collected:
    """Store units as they arrive. Memory holds the chunks held out and one unit.

    A unit is its kind, how many chunks it has, and the states of these and of what follows: synthetic chunks, or known items and as many
    queries. Maps alone are fitted on synthetic chunks and broad text.
    """
    moments = Moments(len(rows.vectors_W))
    held: list[ExitStates] = []
    items: list[ExitStates] = []
    queries: list[Floats] = []
    for done, (kind, num_real, states) in enumerate(tapped, 1):
        logger.info("%d of %d units tapped", done, num_units)
        if kind == "broad":
            rows.add(states.states_NF, states.full_NW, 0, broad_weight)
            continue
        if kind == "held_out":
            middle = (num_real + len(states.full_NW)) // 2
            held.append(states.rows(0, num_real))
            items.append(states.rows(num_real, middle))
            queries.append(states.full_NW[middle:])
            continue
        rows.add(states.states_NF, states.full_NW, num_real)
        moments.add(states.full_NW[:num_real])
        for depth, native_NW in states.native.items():
            extremes.add("native", depth, native_NW[:num_real])
    queries_NW = np.concatenate(queries)
    known = KnownItems(join_states(items), unit(queries_NW)) if len(queries_NW) >= LEAST_HELD_OUT else None
    return Collected(features, rows, moments, join_states(held), known, extremes)


def join_states(parts: Sequence[ExitStates]) -> ExitStates:
    """Concatenate units."""
    return ExitStates(
        np.concatenate([each.states_NF for each in parts]),
        {depth: np.concatenate([each.native[depth] for each in parts]) for depth in parts[0].native},
        np.concatenate([each.full_NW for each in parts]),
    )


def add_ranges(collected: Collected, maps: Mapping[int, ExitMap], rotation_WW: Floats, full_depth: int | None) -> None:
    """Add the extremes of the mapped vectors and, at the full depth, of the full model's rotated vectors, one unit at a time."""
    for depth, exit_map in maps.items():
        for states_NF in collected.rows.read_real(collected.features.blocks(depth)):
            mapped_NW: Floats = states_NF @ exit_map.weight_FW + exit_map.bias_W
            collected.extremes.add("calibrated", depth, mapped_NW)
            collected.extremes.add("calibrated", depth, mapped_NW @ rotation_WW, rotated=True)
    if full_depth is not None:
        for full_NW in collected.rows.read_real_vectors():
            collected.extremes.add("native", full_depth, full_NW @ rotation_WW, rotated=True)
