"""One sweep: texts are run once and tapped at every depth; scores, speeds and costs of the whole grid become rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa

from embedder.core.spec import EmbeddingSpec
from embedder.model.calibration import Calibration
from embedder.model.encoder import Encoder
from embedder.sweep.candidates import Cache, Chunks, Machine, Report, Transformer, choose_machine, cut_documents
from embedder.sweep.cost import Corpus, ExitVariant, Prices, Speed, measure_speeds, project
from embedder.sweep.datasets import KNOWN_ITEMS, Retrieval
from embedder.sweep.evaluate import FIDELITY, Scores, evaluate_fidelity, evaluate_retrieval, evaluate_similarity
from embedder.sweep.grid import Grid, View, view_model
from embedder.sweep.prepare import Model, SweepPlan
from embedder.sweep.recommend import Row, build_rows, choose_row

if TYPE_CHECKING:
    from embedder.sweep.api_candidate import Api


Speeds = dict[ExitVariant, Speed]
Measured = tuple[Corpus, Speeds, Prices]


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Rows of a sweep, the recommended one, None if nothing fits, and the reason."""

    plan: SweepPlan
    machine: Machine
    corpus: Corpus
    rows: tuple[Row, ...]
    full: Row
    """Of the full model."""
    chosen: Row | None
    why: str


def run_sweep(plan: SweepPlan, report: Report) -> SweepResult:
    """Score and price the grid. Rows of calibrated exits, rotations and float8 stand beside the native ones."""
    config = plan.config
    machine, cache = choose_machine(config.compute), Cache(config.output.location.child("taps"))
    apis: list[Api] = []
    if plan.apis:
        from embedder.sweep import api_candidate  # extra openai

        apis = [api_candidate.Api(each, cache, report) for each in plan.apis]
    grids = [build_grid(plan, model, machine, cache, apis, report) for model in plan.models]
    parts = [score_grid(plan, model, grid, report) for model, grid in zip(plan.models, grids, strict=True)]
    scored = {name: {setting: score for part in parts for setting, score in part[name].items()} for name in parts[0]}
    measured, costs = measure_models(plan, machine, apis, report), {}
    for setting in chain.from_iterable(grid.settings() for grid in grids):
        corpus, speeds, paid = measured[setting.model, setting.chunking]
        speed = speeds[ExitVariant(setting.depth, setting.exit, setting.float8)]
        costs[setting] = project(speed, corpus, setting.bytes_per_vector, paid)
    reference = grids[0].reference
    rows = tuple(build_rows(scored, costs, reference))
    full = next(row for row in rows if row.setting == reference)
    corpus, _, _ = measured[plan.model.name, plan.model.chunking]
    return SweepResult(plan, machine, corpus, rows, full, *choose_row(rows, full, config.pick))


def measure_models(plan: SweepPlan, machine: Machine, apis: "list[Api]", report: Report) -> dict[tuple[str, str], Measured]:
    """Return the corpus in tokens, the speeds and the prices of each model and chunking."""
    compute, pick = plan.config.compute, plan.config.pick
    prices = Prices(compute.price_per_device_hour_usd, pick.price_per_index_gb_month_usd, pick.index_months)
    measured: dict[tuple[str, str], Measured] = {}
    for models in (plan.models, *([each] for each in plan.baselines)):
        timed = time_model(models, plan, machine, report)
        measured |= {(models[0].name, chunking): (*figures, prices) for chunking, figures in timed.items()}
    for api in apis:
        tokens, seconds = api.measure(plan.texts)  # a document is one text of a request, truncated by the API
        rate = tokens / max(seconds, 1e-9)
        hour_usd = None if api.usd_per_million is None else api.usd_per_million / 1e6 * rate * 3600
        corpus = estimate_corpus(plan, len(plan.texts), tokens)
        measured[api.name, ""] = corpus, {ExitVariant(0, "native"): Speed(rate, None, None)}, replace(prices, device_hour_usd=hour_usd)
    return measured


def time_model(models: Sequence[Model], plan: SweepPlan, machine: Machine, report: Report) -> dict[str, tuple[Corpus, Speeds]]:
    """Return the corpus in tokens and the speeds of the encoders, by chunking of one model."""
    model, is_main = models[0], models is plan.models
    spec = max((each.resolved.spec for each in models), key=lambda each: each.late_tokens or 0)  # the backend must run all chunkings
    cut = {each.chunking: cut_documents(plan.whole_texts, each.resolved, each.resolved.spec, plan.columns) for each in models}
    report(f"{model.name}: timing {len(model.depths)} depths", 0, 0)
    encoders = load_encoders(model, spec, machine, plan.calibration if is_main else None)
    if plan.config.grid.float8 and is_main:
        encoders |= load_encoders(model, spec.model_copy(update={"float8": True}), machine.for_float8(), plan.calibration)
    speeds = measure_speeds(encoders, cut, machine.token_budget)
    return {name: (estimate_corpus(plan, len(each), len(each.token_ids.flatten())), speeds[name]) for name, each in cut.items()}


def build_grid(plan: SweepPlan, main: Model, machine: Machine, cache: Cache, apis: "list[Api]", report: Report) -> Grid:
    """Return the views of one chunking: the model's own first, then those with layers in float8, then the baselines'."""
    wanted, calibration = plan.config.grid, plan.calibration
    candidate = Transformer(main.name, main.resolved, main.depths, machine, cache, report, calibration)
    views = []
    for each in (candidate, candidate.in_float8()) if wanted.float8 else (candidate,):
        own = view_model(each, main.depths, main.dims, wanted, calibration.rotation_WW if calibration else None)
        views += [replace(view, chunking=main.chunking) for view in own]
    for model in plan.baselines:
        baseline = Transformer(model.name, model.resolved, model.depths, machine, cache, report)
        views += [View(baseline, depth, model.dims, ("same",)) for depth in model.depths]
    views += [View(api, 0, api.dims, ("same",)) for api in apis]
    return Grid(tuple(views), tuple(dict.fromkeys(("float32", *wanted.precisions))))  # the reference is float32


def score_grid(plan: SweepPlan, model: Model, grid: Grid, report: Report) -> dict[str, Scores]:
    """Score every setting of one chunking on every dataset, and against the full model with that chunking."""
    sample, scored = plan.config.sample, {}
    chunks = cut_texts(plan, model, plan.texts, plan.columns)
    for dataset in plan.datasets:
        report(f"scoring on {dataset.name}", 0, 0)
        if isinstance(dataset, Retrieval):
            cut = chunks if dataset.name == KNOWN_ITEMS else cut_texts(plan, model, dataset.documents)
            scored[dataset.name] = evaluate_retrieval(dataset, grid, sample.seed, cut)
        else:
            scored[dataset.name] = evaluate_similarity(dataset, grid, sample.seed)
    for task in plan.config.quality.mteb:
        from embedder.sweep.mteb_tasks import evaluate_task, find_task  # extra mteb

        report(f"scoring on {task}", 0, 0)
        scored[task] = evaluate_task(find_task(task), grid)
    report("comparing neighbors with the full model's", 0, 0)
    scored[FIDELITY] = evaluate_fidelity(chunks or plan.texts, grid, sample.queries, sample.seed)
    return scored


def cut_texts(plan: SweepPlan, model: Model, texts: Sequence[str], columns: pa.Table | None = None) -> Chunks | None:
    """Return the chunks of documents if chunkings are compared; else they are embedded whole."""
    return cut_documents(texts, model.resolved, model.resolved.spec, columns) if plan.config.grid.chunkings else None


def load_encoders(model: Model, spec: EmbeddingSpec, machine: Machine, calibration: Calibration | None) -> dict[ExitVariant, Encoder]:
    """Return encoders cut at each depth, the full one first, and those with a calibrated exit."""
    encoders: dict[ExitVariant, Encoder] = {}
    for depth in model.depths:
        variants = {ExitVariant(depth, "native", spec.float8): spec.model_copy(update={"depth": depth})}
        if calibration and depth in calibration.maps:
            update = {"depth": depth, "exit": "calibrated", "query_depth": spec.depth, "calibration": calibration.fingerprint}
            variants[ExitVariant(depth, "calibrated", spec.float8)] = spec.model_copy(update=update)
        for variant, each in variants.items():
            exit_maps = calibration if variant.exit == "calibrated" else None
            encoders[variant] = Encoder.load(each, machine.device, machine.dtype, exit_maps, machine.layout, machine.backend)
    return encoders


def estimate_corpus(plan: SweepPlan, num_chunks: int, num_tokens: int) -> Corpus:
    """Extend the sample's chunks and tokens to the bytes of the listing."""
    if plan.sample is None or plan.listing is None:
        return Corpus(len(plan.texts), num_chunks, num_tokens, is_estimate=False)
    num_sampled = plan.sample.documents.num_rows
    total = max(plan.sample.estimate_documents(int(plan.listing.shards.sizes.sum())), num_sampled)
    scale = total / num_sampled
    return Corpus(total, round(num_chunks * scale), round(num_tokens * scale), is_estimate=scale > 1)
