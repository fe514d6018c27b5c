"""A sample of a corpus → a calibration: exit maps, principal axes and int8 ranges, with their quality on documents held out."""

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedder.calibrate.collect import Collected, Extremes, Split, add_ranges, choose_synthetic, collect, split_documents
from embedder.calibrate.config import CalibrateConfig, CalibrateSettings
from embedder.calibrate.drift import Figures, expect_fidelity
from embedder.calibrate.fit import CutReport, ExitReport, fit_exits, measure_cuts
from embedder.calibrate.fit_neurons import NeuronTask, fit_neurons
from embedder.calibrate.memory import check_room, choose_chunks, choose_queries
from embedder.calibrate.open_pipeline import Pipeline, open_pipeline
from embedder.calibrate.ridge import Features, Rows, choose_layers
from embedder.calibrate.train_pooling import PoolingTask, train_attention_pooling
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.source import SourceConfig
from embedder.core.context import keep_context
from embedder.core.errors import ConfigError, EmbedderError
from embedder.core.rotation import fit_rotation
from embedder.core.text_hashes import hash_texts
from embedder.model.attention_pooling import UNQUERIED, AttentionPooling, start_attention_pooling
from embedder.model.calibration import Calibration, fitted_for
from embedder.model.defaults import HasColumns
from embedder.model.exits import check_pooling
from embedder.model.files.recipe import width_of
from embedder.model.memory import host_memory_bytes
from embedder.model.neurons import KeptNeurons
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.observe.environment import describe_environment
from embedder.pipeline.tap_actor import Tapping
from embedder.source.columns import with_context
from embedder.source.sampling import NO_METADATA, sample_documents
from embedder.source.selection import has_columns, select_shards
from embedder.source.shards import list_shards
from embedder.text.token_idf import weigh_tokens

LEAST_DIM = 32

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class BroadReport:
    """The text beside the sample that maps were also fitted on."""

    source: str
    documents: int
    chunks: int
    weight: float


@dataclass(frozen=True, slots=True)
class Report:
    """The sample of a calibration and the measurements on it; stored as the artifact's record."""

    source: str
    seed: int
    documents: int
    chunks_fitted: int
    chunks_synthetic: int
    chunks_held_out: int
    broad: BroadReport | None
    neurons_kept: int | None
    """Of each feed-forward block in the layers that exits run; None: all."""
    known_items: int
    """Texts held out that were searched by their first sentences; 0: too few have one."""
    known_item: float | None
    """nDCG@10 of these searches over the full model's vectors."""
    exits: tuple[ExitReport, ...]
    cuts: tuple[CutReport, ...]
    fidelity: Figures
    environment: Mapping[str, Any]


def run_calibrate(config: CalibrateConfig) -> tuple[Calibration, Report]:
    """Draw the sample, tap it in one pass, fit and measure. Nothing is written."""
    settings = config.calibrate
    sources = (config.source, *([settings.broad] if settings.broad else []))
    model = resolve_whole(config.embedding, config.chunking, lambda template: all(has_columns(each, template) for each in sources))
    config = config.model_copy(update={"chunking": config.chunking.model_copy(update={"template": model.spec.template})})
    depths, dims = choose_depths(settings, model), choose_dims(settings, model)
    features = choose_features(depths, model, choose_queries(model.hidden_size, settings.attention.queries), settings.feed_forward < 1)
    if settings.broad and not features.layers:
        raise ConfigError(f"calibrate.broad: maps are fitted on it, and depth {depths[-1]} needs none; leave it out, or name a lower depth")
    split = draw_sample(config)
    pipeline = open_pipeline(config.compute)
    weight = settings.broad.weight if settings.broad else 0.0
    with tempfile.TemporaryDirectory(prefix="embedder-") as folder:
        counting = (model.spec, model.tokenizer_json, model.vocab_size, pipeline.pool)
        num_chunks, counts_V = pipeline.count_units(split.fitted, *counting)
        num_broad = pipeline.count_units(split.broad, *counting)[0] if split.broad else 0
        wanted = choose_synthetic(num_chunks) if settings.synthetic is None else settings.synthetic
        synthetic = wanted if features.layers else 0.0
        size = split.measure(num_chunks, synthetic, num_broad)
        check_room(features, size, model.spec.dim, settings.attention, (host_memory_bytes(), shutil.disk_usage(folder).free))
        start = start_attention_pooling(weigh_tokens(counts_V, num_chunks), model.spec.depth, model.hidden_size, features.num_queries)
        neurons = choose_neurons(model, split, settings.feed_forward, start, pipeline)
        tapping = Tapping(model.spec, model.tokenizer_json, features.tapped, depths, start, synthetic, settings.seed, neurons)
        tapping = train_pooling(tapping, split, features, settings, pipeline)
        rows, pooling = Rows(Path(folder), len(features.tapped), features.block, model.spec.dim), tapping.weighing
        tapped = pipeline.tap_units(split.units, tapping, pipeline.pool)
        del tapping
        collected = collect(tapped, len(split.units), features, rows, Extremes(dims, model.spec.normalize), weight)
        rotation_WW = fit_rotation(collected.moments.covariance_WW)
        maps, exits = fit_exits(rows, collected.held_out, features, settings.strengths, collected.known_items)
        add_ranges(collected, maps, rotation_WW, model.spec.depth if model.spec.depth in depths else None)
    cuts = measure_cuts(collected.held_out.full_NW, rotation_WW, dims)
    fidelity = expect_fidelity(collected, maps, rotation_WW, settings.seed)
    report = write_report(config, split, collected, neurons.places_LK.shape[1] if neurons else None, (exits, cuts, fidelity))
    fits, ranges = fitted_for(model.spec), collected.extremes.ranges
    if neurons:  # native exits run all neurons
        ranges = {key: each for key, each in ranges.items() if key.exit == "calibrated"}
    seen = np.unique(hash_texts(text for unit in (*split.fitted, *split.broad) for text in unit["text"].to_pylist()))
    return Calibration(fits, model.spec.depth, pooling, maps, ranges, asdict(report), rotation_WW, neurons, seen), report


def write_report(
    config: CalibrateConfig,
    split: Split,
    collected: Collected,
    neurons_kept: int | None,
    figures: tuple[tuple[ExitReport, ...], tuple[CutReport, ...], Figures],
) -> Report:
    """Describe the sample, what was fitted on it, and the figures of exits, cuts and fidelity."""
    settings, rows, known, (exits, cuts, fidelity) = config.calibrate, collected.rows, collected.known_items, figures
    num_broad = sum(unit.num_rows for unit in rows.units if not unit.num_real)
    broad = BroadReport(settings.broad.uri, sum(map(len, split.broad)), num_broad, settings.broad.weight) if settings.broad else None
    return Report(
        source=config.source.uri,
        seed=settings.seed,
        documents=sum(map(len, (*split.held_out, *split.fitted))),
        chunks_fitted=collected.moments.num_rows,
        chunks_synthetic=rows.num_rows - collected.moments.num_rows - num_broad,
        chunks_held_out=len(collected.held_out.full_NW),
        broad=broad,
        neurons_kept=neurons_kept,
        known_items=len(known.queries_NW) if known else 0,
        known_item=known.found if known else None,
        exits=exits,
        cuts=cuts,
        fidelity=fidelity,
        environment=describe_environment(),
    )


def draw_sample(config: CalibrateConfig) -> Split:
    """Draw the sample and the broad text beside it."""
    settings, template = config.calibrate, config.chunking.template
    documents = draw_documents(config.source, template, settings.num_documents, settings.seed)
    if settings.broad is None:
        return split_documents(documents, settings)
    try:
        broad = draw_documents(settings.broad, template, settings.broad.num_documents, settings.seed)
    except EmbedderError as error:
        raise type(error)(f"calibrate.broad: {error}") from error
    return split_documents(documents, settings, broad)


def draw_documents(source: SourceConfig, template: str | None, num_documents: int, seed: int) -> pa.Table:
    """Draw documents with the columns of a template."""
    source = with_context(source, template)
    listing, metadata = list_shards(source), NO_METADATA
    if source.filter or template:
        listing, metadata = select_shards(source, listing)
    return sample_documents(source, listing, num_documents, seed, keep_context(metadata)).documents


def resolve_whole(embedding: EmbeddingConfig, chunking: ChunkingConfig, has_columns: HasColumns | None = None) -> ResolvedModel:
    """Resolve a model at its full width, even if its own files set a smaller dim."""
    model = resolve_model(embedding, chunking, has_columns)
    check_pooling(model.spec.pooling)
    if not model.spec.include_prompt:
        raise ConfigError(f"embedding.model={embedding.model!r}: pools without the prompt, which exit maps read; set both prompts to ''")
    return replace(model, spec=model.spec.model_copy(update={"dim": width_of(model.spec)}))


def choose_depths(settings: CalibrateSettings, model: ResolvedModel) -> tuple[int, ...]:
    """Return the depths in the settings, or all."""
    full = model.spec.depth
    depths = tuple(sorted(set(settings.depths or range(1, full + 1))))
    if depths[-1] > full:
        raise ConfigError(f"calibrate.depths={list(depths)}: {model.spec.model!r} has {full} layers; choose 1 to {full}")
    return depths


def choose_dims(settings: CalibrateSettings, model: ResolvedModel) -> tuple[int, ...]:
    """Return the dims in the settings, or the full width and the powers of two below it."""
    width = model.spec.dim
    powers = [2**power for power in range(20) if LEAST_DIM <= 2**power < width]
    dims = tuple(sorted(set(settings.dims or (*powers, width))))
    if dims[-1] > width:
        raise ConfigError(f"calibrate.dims={list(dims)}: vectors of {model.spec.model!r} have {width} components; choose 1 to {width}")
    return dims


def choose_features(depths: Sequence[int], model: ResolvedModel, num_queries: int, pruned: bool = False) -> Features:
    """Choose the layers that the map of each depth below the full one reads, and of that too if its layers are pruned."""
    size = model.hidden_size
    layers = {depth: choose_layers(depth, (UNQUERIED + num_queries) * size) for depth in depths if pruned or depth < model.spec.depth}
    return Features(layers, tuple(sorted({*depths, *(layer for each in layers.values() for layer in each)})), size, num_queries)


def choose_neurons(model: ResolvedModel, split: Split, share: float, pooling: AttentionPooling, pipeline: Pipeline) -> KeptNeurons | None:
    """Choose the neurons that exits keep, where an encoder would run; None for all."""
    if share == 1:
        return None
    task = NeuronTask(model.spec, model.tokenizer_json, pa.concat_tables(split.fitted), share, pooling)
    for step in pipeline.run_steps(fit_neurons, (task, pipeline.pool), pipeline.pool):
        if isinstance(step, KeptNeurons):
            neurons = step
        else:
            logger.info("feed-forward: %s", step)
    return neurons


def train_pooling(tapping: Tapping, split: Split, features: Features, settings: CalibrateSettings, pipeline: Pipeline) -> Tapping:
    """Train the pooling queries, from those given, where an encoder would run; chunks that ran meanwhile are known, if in this process."""
    if not features.layers or not choose_chunks(features, settings.attention):
        return tapping
    read = replace(features, tapped=tuple(sorted({layer for layers in features.layers.values() for layer in layers})))
    held_out, number = pa.concat_tables(split.held_out), len(split.held_out)
    task = PoolingTask(tapping, held_out, split.fitted, number, read, settings.attention, keeps=pipeline.is_local)
    for step in pipeline.run_steps(train_attention_pooling, (task, pipeline.pool), pipeline.pool):
        if isinstance(step, Tapping):
            tapping = step
        else:
            logger.info("attention: %s", step)
    return tapping
