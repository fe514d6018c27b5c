"""One sweep: every text is run once and tapped at every depth; scores, speeds and costs of the whole grid become one report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from embedder.core.storage import Location
from embedder.model.calibration import Calibration
from embedder.model.encoder import Encoder
from embedder.sweep.cache import Cache
from embedder.sweep.candidates import CalibratedExit, Machine, Report, Transformer, choose_machine, open_exits, tokenize
from embedder.sweep.cost import Corpus, Cost, ExitVariant, Prices, Speed, measure_speeds, price_index, project
from embedder.sweep.datasets import Retrieval, Similarity
from embedder.sweep.evaluate import Scored, evaluate_fidelity, evaluate_retrieval, evaluate_similarity
from embedder.sweep.grid import Grid, Setting, View, view_model
from embedder.sweep.prepare import Model, Study
from embedder.sweep.recommend import Choice, Row, build_rows, choose_row

if TYPE_CHECKING:
    from embedder.sweep.api_candidate import Api


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found."""

    study: Study
    machine: Machine
    corpus: Corpus
    reference: Setting
    rows: tuple[Row, ...]
    choice: Choice

    @property
    def full(self) -> Row:
        """The full model's row."""
        return next(row for row in self.rows if row.setting == self.reference)


def run_sweep(study: Study, report: Report) -> Swept:
    """Score and price the grid; where there is a calibration, its exits' rows come beside the native ones."""
    config = study.config
    machine = choose_machine(config.compute)
    cache = Cache(Location(f"{config.output.uri.rstrip('/')}/taps", config.output.storage_options))
    models = {each.name: each for each in (study.model, *study.rivals)}
    main = study.model
    exits = open_exits(study.calibration, main.depths, main.resolved.hidden_size) if study.calibration else {}
    transformers = {
        name: Transformer(name, each.resolved, each.depths, machine, cache, report, exits if each is main else None)
        for name, each in models.items()
    }
    apis = open_apis(study, cache, report)
    grid = build_grid(study, transformers, apis, exits)
    scored = score_grid(study, grid, report)
    prices = Prices(config.compute.price_per_device_hour_usd, config.pick.price_per_index_gb_month_usd, config.pick.index_months)
    costs: dict[Setting, Cost] = {}
    corpora = {}
    for name, model in models.items():
        token_ids = tokenize(study.whole_texts, model.resolved, model.resolved.spec)
        corpora[name] = estimate_corpus(study, len(token_ids), len(token_ids.flatten()))
        report(f"{name}: timing {len(model.depths)} depths", 0, 0)
        encoders = load_encoders(model, machine, study.calibration if model is main else None)
        if config.grid.float8 and model is main:
            encoders |= load_encoders(in_float8(main), machine.around_float8(), study.calibration)
        speeds = measure_speeds(encoders, token_ids, machine.token_budget)
        costs |= price_model(grid, name, speeds, corpora[name], prices)
    for api in apis:
        costs |= price_api(grid, api, study, prices)
    rows = build_rows(scored, {setting: costs[setting] for setting in grid.settings()}, grid.reference)
    full = next(row for row in rows if row.setting == grid.reference)
    return Swept(study, machine, corpora[study.model.name], grid.reference, tuple(rows), choose_row(rows, full, config.pick))


def open_apis(study: Study, cache: Cache, report: Report) -> "list[Api]":
    """Make the candidates behind an API."""
    if not study.apis:
        return []
    from embedder.sweep.api_candidate import Api  # extra openai

    return [Api(each, cache, report) for each in study.apis]


def in_float8(model: Model) -> Model:
    """Give the same model with its layers in float8."""
    return replace(model, resolved=replace(model.resolved, spec=model.resolved.spec.model_copy(update={"float8": True})))


def build_grid(study: Study, transformers: Mapping[str, Transformer], apis: "Sequence[Api]", exits: Mapping[int, CalibratedExit]) -> Grid:
    """List the views of all models, the model's own first, and then those with its layers in float8."""
    main, wanted = study.model, study.config.grid
    rotation_WW = study.calibration.rotation_WW if study.calibration else None
    views = view_model(transformers[main.name], main.depths, main.dims, wanted, exits, rotation_WW)
    if wanted.float8:
        views += view_model(transformers[main.name].in_float8(), main.depths, main.dims, wanted, exits, rotation_WW)
    for rival in study.rivals:
        views += [View(transformers[rival.name], depth, rival.dims, ("same",)) for depth in rival.depths]
    views += [View(api, 0, api.dims, ("same",)) for api in apis]
    return Grid(tuple(views), tuple(dict.fromkeys(("float32", *wanted.precisions))))  # what all is compared with is float32


def score_grid(study: Study, grid: Grid, report: Report) -> list[Scored]:
    """Score every setting on every dataset, and against the full model."""
    config, seed = study.config, study.config.sample.seed
    scored = []
    for dataset in study.datasets:
        report(f"scoring on {dataset.name}", 0, 0)
        scored.append(evaluate_dataset(dataset, grid, seed))
    for task in config.quality.mteb:
        from embedder.sweep.mteb_tasks import evaluate_task, find_task  # extra mteb

        report(f"scoring on {task}", 0, 0)

        scored.append(evaluate_task(find_task(task), grid))
    report("comparing neighbours with the full model's", 0, 0)
    scored.append(evaluate_fidelity(study.texts, grid, config.sample.queries, seed))
    return scored


def evaluate_dataset(dataset: Retrieval | Similarity, grid: Grid, seed: int) -> Scored:
    """Score every setting on one dataset."""
    if isinstance(dataset, Retrieval):
        return evaluate_retrieval(dataset, grid, seed)
    return evaluate_similarity(dataset, grid, seed)


def load_encoders(model: Model, machine: Machine, calibration: Calibration | None) -> dict[ExitVariant, Encoder]:
    """Load encoders really cut at each depth, the full one first, and those that leave by a calibrated map."""
    spec, maps = model.resolved.spec, calibration.maps if calibration else {}
    encoders: dict[ExitVariant, Encoder] = {}
    for depth in model.depths:
        cut = spec.model_copy(update={"depth": depth})
        encoders[ExitVariant(depth, "native", spec.float8)] = Encoder.load(
            cut, machine.device, machine.dtype, None, machine.layout, machine.backend
        )
        if calibration and depth in maps:
            leaving = cut.model_copy(update={"exit": "calibrated", "query_depth": spec.depth, "calibration": calibration.fingerprint})
            encoders[ExitVariant(depth, "calibrated", spec.float8)] = Encoder.load(
                leaving, machine.device, machine.dtype, calibration, machine.layout, machine.backend
            )
    return encoders


def estimate_corpus(study: Study, num_chunks: int, num_tokens: int) -> Corpus:
    """Extend the sample's chunks and tokens to the bytes of the listing."""
    if study.sample is None or study.listing is None:
        return Corpus(len(study.texts), num_chunks, num_tokens, is_estimate=False)
    num_sampled = study.sample.documents.num_rows
    total = study.sample.estimate_documents(sum(shard.size_bytes for shard in study.listing.shards))
    scale = max(total, num_sampled) / num_sampled
    return Corpus(max(total, num_sampled), round(num_chunks * scale), round(num_tokens * scale), is_estimate=scale > 1)


def price_model(grid: Grid, name: str, speeds: Mapping[ExitVariant, Speed], corpus: Corpus, prices: Prices) -> dict[Setting, Cost]:
    """Price all rows of one model: depth decides the time, dim and precision the index."""
    return {
        setting: project(speeds[ExitVariant(setting.depth, setting.exit, setting.float8)], corpus, setting.bytes_per_vector, prices)
        for setting in grid.settings()
        if setting.model == name
    }


def price_api(grid: Grid, api: "Api", study: Study, prices: Prices) -> dict[Setting, Cost]:
    """Price an API's rows by the tokens and the time that the sample took; a document is one request's text, cut by the API."""
    usage = api.measure(study.texts)
    corpus = estimate_corpus(study, len(study.texts), usage.tokens)
    costs = {}
    for setting in grid.settings():
        if setting.model == api.name:
            index_bytes = corpus.chunks * setting.bytes_per_vector
            usd = None if api.price_per_token_usd is None else corpus.tokens * api.price_per_token_usd
            rate = usage.tokens / max(usage.seconds, 1e-9)
            costs[setting] = Cost(corpus.tokens / rate, usd, index_bytes, price_index(index_bytes, prices), None, rate, None)
    return costs
