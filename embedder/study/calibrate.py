"""A sample of a corpus → a calibration: exit maps and int8 ranges, with what they are worth on documents held out.

N = chunks, F = features, W = the full model's width, D = dim.
"""

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.actors import Tapping
from embedder.errors import ConfigError
from embedder.model.calibration import Calibration, ExitMap, RangeKey, fitted_for
from embedder.model.encoder import ExitStates
from embedder.model.exits import exit_poolings
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.pipeline import choose_pool, start_ray, tap_units
from embedder.quantization import Ranges
from embedder.source.sampling import sample_documents
from embedder.source.shards import list_shards
from embedder.study.config import CalibrateConfig, CalibrateSettings
from embedder.study.exits import Fidelity, Floats, Places, Sums, choose_layers, measure_fidelity, unit
from embedder.summary import describe_environment

UNIT_DOCUMENTS = 256
LEAST_DOCUMENTS = 100
FEW_ROWS = 2
"""Chunks for each feature of a map below which a larger sample would still help much."""
LEAST_DIM = 32

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class ExitReport:
    """One depth: what its map was fitted with, and how near it comes to the full model on chunks held out, beside the raw exit."""

    depth: int
    num_features: int
    strength: float
    calibrated: Fidelity
    native: Fidelity


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The artifact and what is known of it."""

    calibration: Calibration
    exits: tuple[ExitReport, ...]
    num_documents: int
    num_fitted: int
    """Chunks."""
    num_held_out: int


@dataclass(frozen=True, slots=True)
class Features:
    """Where each depth's features are among those tapped."""

    layers: Mapping[int, tuple[int, ...]]
    """By depth: the layers its map reads."""
    tapped: tuple[int, ...]
    block: int
    """Features of a layer."""

    def places(self, depth: int) -> Places:
        """Give the columns of a depth's features."""
        starts = [self.tapped.index(layer) * self.block for layer in self.layers[depth]]
        return np.concatenate([np.arange(start, start + self.block) for start in starts])


class Extremes:
    """The smallest and largest value of each component, for every kind of vector that is asked for."""

    def __init__(self, dims: Sequence[int], normalize: bool) -> None:
        self.dims, self.normalize = dims, normalize
        self.ranges: dict[RangeKey, Ranges] = {}

    def add(self, exit_name: str, depth: int, vectors_NW: Floats) -> None:
        """Take in full-width vectors, cut to every dim."""
        for dim in self.dims:
            cut_ND = unit(vectors_NW[:, :dim]) if self.normalize else vectors_NW[:, :dim]
            key = RangeKey("calibrated" if exit_name == "calibrated" else "native", depth, dim)
            low_D, high_D = cut_ND.min(axis=0), cut_ND.max(axis=0)
            if key in self.ranges:
                low_D, high_D = np.minimum(low_D, self.ranges[key].low_D), np.maximum(high_D, self.ranges[key].high_D)
            self.ranges[key] = Ranges(low_D, high_D)


@dataclass(frozen=True, slots=True)
class Collected:
    """What one pass over the sample leaves: sums, the chunks held out, the others' states in files, and the raw exits' extremes."""

    sums: Sums
    held_out: ExitStates
    files: tuple[Path, ...]
    extremes: Extremes


def run_calibrate(config: CalibrateConfig) -> Calibrated:
    """Draw the sample, tap it in one pass, fit and measure; nothing is written."""
    model = resolve_model(config.embedding, config.chunking)
    depths, dims = choose_depths(config.calibrate, model), choose_dims(config.calibrate, model)
    settings, source = config.calibrate, config.source
    sample = sample_documents(source, list_shards(source), settings.num_documents, settings.seed)
    units, num_held_out = cut_sample(sample.documents, settings)
    block = len(exit_poolings(model.spec.pooling)) * model.hidden_size
    layers = {depth: choose_layers(depth, block) for depth in depths if depth < model.spec.depth}
    features = Features(layers, tuple(sorted({*depths, *(layer for each in layers.values() for layer in each)})), block)
    start_ray()
    tapping = Tapping(model.spec, model.tokenizer_json, features.tapped, depths)
    with tempfile.TemporaryDirectory(prefix="embedder-") as folder:
        extremes = Extremes(dims, model.spec.normalize)
        tapped = tap_units(units, tapping, choose_pool(config.compute))
        collected = collect(tapped, num_held_out, len(units), Path(folder), extremes)
        maps, exits = fit_exits(collected, features, settings.strengths)
        add_mapped(collected, features, maps)
    record = {
        "source": source.uri,
        "seed": settings.seed,
        "documents": sample.documents.num_rows,
        "chunks_fitted": collected.sums.num_rows,
        "chunks_held_out": len(collected.held_out.full_NW),
        "exits": [asdict(each) for each in exits],
        "environment": describe_environment(),
    }
    calibration = Calibration(fitted_for(model.spec), model.spec.depth, maps, extremes.ranges, record)
    return Calibrated(calibration, exits, sample.documents.num_rows, collected.sums.num_rows, len(collected.held_out.full_NW))


def choose_depths(settings: CalibrateSettings, model: ResolvedModel) -> tuple[int, ...]:
    """Take the depths asked for, or all."""
    full = model.spec.depth
    depths = tuple(sorted(set(settings.depths or range(1, full + 1))))
    if depths[-1] > full:
        raise ConfigError(f"calibrate.depths={list(depths)}: {model.spec.model!r} has {full} layers; choose 1 to {full}")
    return depths


def choose_dims(settings: CalibrateSettings, model: ResolvedModel) -> tuple[int, ...]:
    """Take the dims asked for, or the full width and the powers of two below it."""
    width = model.spec.dim
    powers = [2**power for power in range(20) if LEAST_DIM <= 2**power < width]
    dims = tuple(sorted(set(settings.dims or (*powers, width))))
    if dims[-1] > width:
        raise ConfigError(f"calibrate.dims={list(dims)}: {model.spec.model!r} gives {width} components; choose 1 to {width}")
    return dims


def cut_sample(documents: pa.Table, settings: CalibrateSettings) -> tuple[list[pa.Table], int]:
    """Shuffle documents and cut them into units, those held out first; gives the units and how many are held out."""
    count = documents.num_rows
    if count < LEAST_DOCUMENTS:
        raise ConfigError(f"source: only {count} documents to fit on; at least {LEAST_DOCUMENTS} are needed")
    shuffled = documents.take(pa.array(np.random.default_rng(settings.seed).permutation(count)))
    held_out = max(1, round(settings.held_out * count))
    held = [shuffled.slice(start, min(UNIT_DOCUMENTS, held_out - start)) for start in range(0, held_out, UNIT_DOCUMENTS)]
    return held + [shuffled.slice(start, UNIT_DOCUMENTS) for start in range(held_out, count, UNIT_DOCUMENTS)], len(held)


def collect(tapped: Iterable[tuple[int, ExitStates]], num_held_out: int, num_units: int, folder: Path, extremes: Extremes) -> Collected:
    """Sum up units as they land; memory holds the sums, the chunks held out and one unit."""
    sums: Sums | None = None
    held: list[ExitStates] = []
    files: list[Path] = []
    for done, (number, states) in enumerate(tapped, 1):
        logger.info("%d of %d units tapped", done, num_units)
        if number < num_held_out:
            held.append(states)
            continue
        sums = sums or Sums(states.states_NF.shape[1], states.full_NW.shape[1])
        sums.add(states.states_NF, states.full_NW)
        for depth, native_NW in states.native.items():
            extremes.add("native", depth, native_NW)
        files.append(folder / f"{number}.npy")
        np.save(files[-1], states.states_NF)
    assert sums is not None
    held_out = ExitStates(
        np.concatenate([each.states_NF for each in held]),
        {depth: np.concatenate([each.native[depth] for each in held]) for depth in held[0].native},
        np.concatenate([each.full_NW for each in held]),
    )
    return Collected(sums, held_out, tuple(files), extremes)


def fit_exits(collected: Collected, features: Features, strengths: Sequence[float]) -> tuple[dict[int, ExitMap], tuple[ExitReport, ...]]:
    """Fit a map for each depth, at the strength that comes nearest to the full model on chunks held out."""
    maps, reports = {}, []
    held_out, num_rows = collected.held_out, collected.sums.num_rows
    for depth, layers in features.layers.items():
        places = features.places(depth)
        fitted = list(collected.sums.fit(places, strengths))
        scored = [(measure_fidelity(line.apply(held_out.states_NF[:, places]), held_out.full_NW), line, each) for each, line in fitted]
        fidelity, line, strength = max(scored, key=lambda each: each[0].cosine)
        native = measure_fidelity(held_out.native[depth], held_out.full_NW)
        maps[depth] = ExitMap(layers, line.weight_FW, line.bias_W)
        reports.append(ExitReport(depth, len(places), strength, fidelity, native))
        if num_rows < FEW_ROWS * len(places):
            logger.warning(
                "depth %d: %d chunks for %d features are few (held out: cosine %.3f, overlap %.2f); raise calibrate.num_documents",
                *(depth, num_rows, len(places), fidelity.cosine, fidelity.overlap),
            )
    return maps, tuple(reports)


def add_mapped(collected: Collected, features: Features, maps: Mapping[int, ExitMap]) -> None:
    """Take in the extremes of what the maps give, a unit at a time."""
    for file in collected.files:
        states_NF = np.load(file)
        for depth, exit_map in maps.items():
            mapped_NW = states_NF[:, features.places(depth)] @ exit_map.weight_FW + exit_map.bias_W
            collected.extremes.add("calibrated", depth, mapped_NW)
