"""Units of a sample as they are tapped → what exits are fitted on and trained on, and the extremes that int8 is cut by.

N = chunks, F = features, W = the full model's width, D = dim.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.calibrate.ridge import Features, Floats, Sums, unit
from embedder.core.quantization import Ranges
from embedder.core.spec import Exit
from embedder.model.calibration import ExitMap, RangeKey
from embedder.model.results import ExitStates

logger = logging.getLogger("embedder")


class Extremes:
    """The smallest and largest value of each component, for every kind of vector that is asked for."""

    def __init__(self, dims: Sequence[int], normalize: bool) -> None:
        self.dims, self.normalize = dims, normalize
        self.ranges: dict[RangeKey, Ranges] = {}

    def add(self, exit_name: Exit, depth: int, vectors_NW: Floats, rotated: bool = False) -> None:
        """Take in full-width vectors, cut to every dim."""
        for dim in self.dims:
            cut_ND = unit(vectors_NW[:, :dim]) if self.normalize else vectors_NW[:, :dim]
            key = RangeKey(exit_name, depth, dim, rotated)
            low_D, high_D = cut_ND.min(axis=0), cut_ND.max(axis=0)
            if key in self.ranges:
                low_D, high_D = np.minimum(low_D, self.ranges[key].low_D), np.maximum(high_D, self.ranges[key].high_D)
            self.ranges[key] = Ranges(low_D, high_D)


@dataclass(frozen=True, slots=True)
class Lessons:
    """Token ids of chunks, and the full model's vectors of them."""

    token_ids: pa.ListArray
    full_NW: Floats  # noqa: N815


@dataclass(frozen=True, slots=True)
class Collected:
    """What one pass over the sample leaves: sums, the chunks held out, states and vectors of the others in files, extremes of raw exits."""

    sums: Sums
    held_out: ExitStates
    files: tuple[Path, ...]
    extremes: Extremes
    lessons: Lessons | None
    """All chunks, those held out first, if they are to be trained on: memory then holds them."""


def collect(
    tapped: Iterable[tuple[int, ExitStates]],
    features: Features,
    num_held_out: int,
    num_units: int,
    folder: Path,
    extremes: Extremes,
    for_lessons: bool = False,
) -> Collected:
    """Sum up units as they land; memory holds the sums, the chunks held out and one unit."""
    sums: Sums | None = None
    held: list[ExitStates] = []
    files: list[Path] = []
    lessons: dict[int, Lessons] = {}
    for done, (number, states) in enumerate(tapped, 1):
        logger.info("%d of %d units tapped", done, num_units)
        if for_lessons:
            lessons[number] = Lessons(states.token_ids, states.full_NW)
        if number < num_held_out:
            held.append(states)
            continue
        sums = sums or Sums(states.states_NF.shape[1], states.full_NW.shape[1], features.pairs, features.block)
        sums.add(states.states_NF, states.full_NW)
        for depth, native_NW in states.native.items():
            extremes.add("native", depth, native_NW)
        files.append(folder / f"{number}.npz")
        np.savez(files[-1], states=states.states_NF, full=states.full_NW)
    assert sums is not None
    return Collected(sums, join_states(held), tuple(files), extremes, join_lessons(lessons) if for_lessons else None)


def join_states(parts: Sequence[ExitStates]) -> ExitStates:
    """Put units one after the other."""
    return ExitStates(
        np.concatenate([each.states_NF for each in parts]),
        {depth: np.concatenate([each.native[depth] for each in parts]) for depth in parts[0].native},
        np.concatenate([each.full_NW for each in parts]),
        pa.concat_arrays([each.token_ids for each in parts]),
    )


def join_lessons(by_number: Mapping[int, Lessons]) -> Lessons:
    """Put units one after the other, in the order of their numbers, however they landed."""
    parts = [by_number[number] for number in sorted(by_number)]
    return Lessons(pa.concat_arrays([each.token_ids for each in parts]), np.concatenate([each.full_NW for each in parts]))


def add_mapped(collected: Collected, features: Features, maps: Mapping[int, ExitMap], rotation_WW: Floats) -> None:
    """Take in the extremes of what the maps give, a unit at a time."""
    for file in collected.files:
        states_NF = np.load(file)["states"]
        for depth, exit_map in maps.items():
            mapped_NW = states_NF[:, features.places(depth)] @ exit_map.weight_FW + exit_map.bias_W
            add_calibrated(collected.extremes, depth, mapped_NW, rotation_WW)


def add_calibrated(extremes: Extremes, depth: int, vectors_NW: Floats, rotation_WW: Floats) -> None:
    """Take in what leaves by an exit, as it is and turned."""
    extremes.add("calibrated", depth, vectors_NW)
    extremes.add("calibrated", depth, vectors_NW @ rotation_WW, rotated=True)


def add_turned(collected: Collected, depth: int, rotation_WW: Floats) -> None:
    """Take in the extremes of the full model's vectors, turned."""
    for file in collected.files:
        collected.extremes.add("native", depth, np.load(file)["full"] @ rotation_WW, rotated=True)
