"""A sample of a corpus → a calibration: exit maps, principal axes and int8 ranges, with what they are worth on documents held out.

N = chunks, F = features, W = the full model's width, D = dim.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.calibrate.collect import Collected, Extremes, add_calibrated, add_mapped, add_turned, collect
from embedder.calibrate.config import CalibrateConfig, CalibrateSettings
from embedder.calibrate.distill import START_STRENGTH, Progress, Teaching, distill_exit
from embedder.calibrate.ridge import Features, Fidelity, Floats, choose_layers, measure_fidelity, share_of_nearest, unit
from embedder.calibrate.train_pooling import Learning, train_attention_pooling
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.core.rotation import fit_rotation
from embedder.model.attention_pooling import AttentionPooling, start_attention_pooling
from embedder.model.calibration import Calibration, ExitMap, fitted_for
from embedder.model.exits import NUM_POOLINGS
from embedder.model.files.recipe import width_of
from embedder.model.memory import host_memory_bytes
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.observe.environment import describe_environment
from embedder.pipeline.calibration_graph import count_units, run_steps, tap_units
from embedder.pipeline.cluster import choose_pool, start_ray
from embedder.pipeline.pool import Pool
from embedder.pipeline.tap_actor import Tapping
from embedder.source.sampling import sample_documents
from embedder.source.shards import list_shards
from embedder.text.token_idf import weigh_tokens

UNIT_DOCUMENTS = 256
LEAST_DOCUMENTS = 100
LEAST_HELD_OUT = 30
"""Documents: of fewer, the ten nearest are most of those there are, and are found by any vectors."""
LEAST_FITTED = 10
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
    """By the map alone."""
    native: Fidelity
    distilled: Fidelity | None = None
    """By layers and map trained together, where that was asked for."""


@dataclass(frozen=True, slots=True)
class CutReport:
    """Of one dim: the share of the ten nearest chunks by whole vectors that are so by cut ones too, as they are and turned first."""

    dim: int
    plain: float
    rotated: float


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The artifact and what is known of it."""

    calibration: Calibration
    exits: tuple[ExitReport, ...]
    cuts: tuple[CutReport, ...]
    num_documents: int
    num_fitted: int
    """Chunks."""
    num_held_out: int


def run_calibrate(config: CalibrateConfig) -> Calibrated:
    """Draw the sample, tap it in one pass, fit and measure; nothing is written."""
    model = resolve_whole(config.embedding, config.chunking)
    depths, dims = choose_depths(config.calibrate, model), choose_dims(config.calibrate, model)
    settings, source = config.calibrate, config.source
    sample = sample_documents(source, list_shards(source), settings.num_documents, settings.seed)
    units, num_held_out = cut_sample(sample.documents, settings)
    size = model.hidden_size
    layers = {depth: choose_layers(depth, NUM_POOLINGS * size) for depth in depths if depth < model.spec.depth}
    features = Features(layers, tuple(sorted({*depths, *(layer for each in layers.values() for layer in each)})), size)
    check_memory(features, host_memory_bytes())
    start_ray()
    pool = choose_pool(config.compute)
    chunks, counts_V = count_units(units[num_held_out:], model.spec, model.tokenizer_json, model.vocab_size, pool)
    weighing = start_attention_pooling(weigh_tokens(counts_V, chunks), model.spec.depth, size)
    if settings.attention.chunks and layers:
        held_out, others = (pa.concat_tables(each) for each in (units[:num_held_out], units[num_held_out:]))
        learning = Learning(model.spec, model.tokenizer_json, held_out, others, layers, weighing, settings.attention, settings.seed)
        weighing = learn(learning, pool)
    tapping = Tapping(model.spec, model.tokenizer_json, features.tapped, depths, weighing)
    with tempfile.TemporaryDirectory(prefix="embedder-") as folder:
        extremes, is_distilled = Extremes(dims, model.spec.normalize), settings.method == "distill"
        collected = collect(tap_units(units, tapping, pool), features, num_held_out, len(units), Path(folder), extremes, is_distilled)
        rotation_WW = fit_rotation(collected.sums.covariance_WW)
        maps, exits = fit_exits(collected, features, settings.strengths)
        if is_distilled:
            teacher = Teacher(tapping, collected, features, rotation_WW, settings, pool)
            exits = tuple(teacher.teach(maps, each) for each in exits)
        else:
            add_mapped(collected, features, maps, rotation_WW)
        if model.spec.depth in depths:
            add_turned(collected, model.spec.depth, rotation_WW)
    cuts = measure_cuts(collected.held_out.full_NW, rotation_WW, dims)
    record = {
        "source": source.uri,
        "seed": settings.seed,
        "documents": sample.documents.num_rows,
        "chunks_fitted": collected.sums.num_rows,
        "chunks_held_out": len(collected.held_out.full_NW),
        "exits": [asdict(each) for each in exits],
        "cuts": [asdict(each) for each in cuts],
        "environment": describe_environment(),
    }
    calibration = Calibration(fitted_for(model.spec), model.spec.depth, tapping.weighing, maps, extremes.ranges, record, rotation_WW)
    return Calibrated(calibration, exits, cuts, sample.documents.num_rows, collected.sums.num_rows, len(collected.held_out.full_NW))


def check_memory(features: Features, memory_bytes: int) -> None:
    """Refuse more depths than this process could sum up a sample for, before hours of tapping."""
    needed = features.sum_bytes
    logger.info("%d maps: the sums of the sample, and solving the largest, take %.1f GB of memory here", len(features.layers), needed / 1e9)
    if needed > memory_bytes:
        raise ConfigError(
            f"calibrate.depths: {len(features.layers)} maps take {needed / 1e9:.1f} GB to fit, this machine has {memory_bytes / 1e9:.1f}; "
            "name fewer depths, or calibrate where there is more memory"
        )


def learn(learning: Learning, pool: Pool) -> AttentionPooling:
    """Train the queries of the learned means where an encoder would run, and say how it goes."""
    weighing = learning.weighing
    for step in run_steps(train_attention_pooling, (learning, pool), pool):
        if isinstance(step, AttentionPooling):
            weighing = step
        else:
            logger.info("attention: %s", step)
    return weighing


def choose_depths(settings: CalibrateSettings, model: ResolvedModel) -> tuple[int, ...]:
    """Take the depths asked for, or all."""
    full = model.spec.depth
    depths = tuple(sorted(set(settings.depths or range(1, full + 1))))
    if depths[-1] > full:
        raise ConfigError(f"calibrate.depths={list(depths)}: {model.spec.model!r} has {full} layers; choose 1 to {full}")
    return depths


def resolve_whole(embedding: EmbeddingConfig, chunking: ChunkingConfig) -> ResolvedModel:
    """Resolve a model with its vectors whole, whatever dim its own files say."""
    model = resolve_model(embedding, chunking)
    return replace(model, spec=model.spec.model_copy(update={"dim": width_of(model.spec)}))


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
    held_out = max(LEAST_HELD_OUT, round(settings.held_out * count))
    if count - held_out < LEAST_FITTED:
        raise ConfigError(
            f"calibrate.held_out={settings.held_out}: leaves {count - held_out} of {count} documents to fit on; "
            f"hold out less, so that at least {LEAST_FITTED} are left, and better most of them"
        )
    shuffled = documents.take(pa.array(np.random.default_rng(settings.seed).permutation(count)))
    held = [shuffled.slice(start, min(UNIT_DOCUMENTS, held_out - start)) for start in range(0, held_out, UNIT_DOCUMENTS)]
    return held + [shuffled.slice(start, UNIT_DOCUMENTS) for start in range(held_out, count, UNIT_DOCUMENTS)], len(held)


def fit_exits(collected: Collected, features: Features, strengths: Sequence[float]) -> tuple[dict[int, ExitMap], tuple[ExitReport, ...]]:
    """Fit a map for each depth, at the strength that comes nearest to the full model on chunks held out."""
    maps, reports = {}, []
    held_out, num_rows = collected.held_out, collected.sums.num_rows
    for depth, layers in features.layers.items():
        places = features.places(depth)
        scored = []
        for strength, line in collected.sums.fit(places, strengths):
            scored.append((measure_fidelity(line.apply(held_out.states_NF[:, places]), held_out.full_NW), strength, line))
        fidelity, strength, line = max(scored, key=lambda each: each[0].cosine)
        native = measure_fidelity(held_out.native[depth], held_out.full_NW)
        maps[depth] = ExitMap(layers, line.weight_FW, line.bias_W)
        reports.append(ExitReport(depth, len(places), strength, fidelity, native))
        if num_rows < FEW_ROWS * len(places):
            logger.warning(
                "depth %d: %d chunks for %d features are few (held out: cosine %.3f, overlap %.2f); raise calibrate.num_documents",
                *(depth, num_rows, len(places), fidelity.cosine, fidelity.overlap),
            )
    return maps, tuple(reports)


@dataclass(frozen=True, slots=True)
class Teacher:
    """Trains the layers below each exit, with its map, to give the full model's vectors."""

    tapping: Tapping
    collected: Collected
    features: Features
    rotation_WW: Floats  # noqa: N815
    settings: CalibrateSettings
    pool: Pool

    def teach(self, maps: dict[int, ExitMap], fitted: ExitReport) -> ExitReport:
        """Train one depth, replace its map by what came of it, and say how good it is; int8 is to be cut by its vectors."""
        lessons, depth, places = self.collected.lessons, fitted.depth, self.features.places(fitted.depth)
        [(_, start)] = self.collected.sums.fit(places, [START_STRENGTH])
        assert lessons is not None
        teaching = Teaching(
            self.tapping.spec,
            depth,
            maps[depth],
            start,
            self.settings.strengths,
            self.tapping.weighing,
            self.collected.sums.spread(places),
            lessons.token_ids,
            lessons.full_NW,
            len(self.collected.held_out.full_NW),
            self.settings.distill,
            self.settings.seed,
        )
        for step in run_steps(distill_exit, (teaching, self.pool.device, self.pool.dtype, self.pool.threads), self.pool):
            if isinstance(step, Progress):
                logger.info("depth %d: %s", depth, step.line())
                continue
            maps[depth] = step.exit_map
            add_calibrated(self.collected.extremes, depth, step.vectors_NW, self.rotation_WW)
            fitted = replace(fitted, distilled=step.fidelity)
        return fitted


def measure_cuts(full_NW: Floats, rotation_WW: Floats, dims: Sequence[int]) -> tuple[CutReport, ...]:
    """Cut vectors of the full model both ways, to every dim below the full width."""
    full_NW = unit(full_NW)
    turned_NW = full_NW @ rotation_WW
    reports = []
    for dim in dims:
        if dim < full_NW.shape[1]:
            plain, rotated = (share_of_nearest(full_NW, unit(each_NW[:, :dim])) for each_NW in (full_NW, turned_NW))
            reports.append(CutReport(dim, plain, rotated))
    return tuple(reports)
