"""Settings → a plan that is checked before the first forward pass, or one error with every problem."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import PurePosixPath

import pyarrow as pa

from embedder.config.embedding import EmbeddingConfig
from embedder.core.context import CONTEXT_PREFIX
from embedder.core.errors import ConfigError
from embedder.core.problems import Problems
from embedder.core.storage import Location
from embedder.core.text_hashes import count_seen
from embedder.model.calibration import Calibration, load_calibration
from embedder.model.files.recipe import find_recipe
from embedder.model.float8 import check_device
from embedder.model.resolve import ResolvedModel, check_float8, resolve_model
from embedder.source.columns import with_context
from embedder.source.sampling import Sample, sample_documents
from embedder.source.selection import select_shards
from embedder.source.shards import Listing, list_shards
from embedder.sweep.candidates import choose_machine
from embedder.sweep.config import BaselineConfig, GridConfig, SweepConfig
from embedder.sweep.datasets import KNOWN_ITEMS, Retrieval, Similarity, make_known_items, read_beir, read_similarity
from embedder.sweep.evaluate import FIDELITY
from embedder.sweep.grid import choose_depths, choose_dims

QUERY_COLUMN = "query"


@dataclass(frozen=True, slots=True)
class Model:
    """A local model and the depths and dims to try, the deepest and widest first."""

    name: str
    resolved: ResolvedModel
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    chunking: str = ""
    """Name of its chunking, '' if there is one only."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A checked sweep: all data is read, no model has run."""

    config: SweepConfig
    models: tuple[Model, ...]
    """The model with each chunking, that of the reference first."""
    baselines: tuple[Model, ...]
    apis: tuple[BaselineConfig, ...]
    datasets: tuple[Retrieval | Similarity, ...]
    texts: tuple[str, ...]
    """Documents as they are compared: with known items, without their queries."""
    sample: Sample | None
    listing: Listing | None
    calibration: Calibration | None = None
    """Its exits and rotation are tried beside the native ones."""
    fitted_on: tuple[int, int] | None = None
    """How many of the documents that quality is measured on the calibration was fitted on, and of how many; None: not known."""

    @property
    def model(self) -> Model:
        """The model as the reference chunks."""
        return self.models[0]

    @property
    def columns(self) -> pa.Table | None:
        """Columns of the sample, whose rows are those of its texts; None without one."""
        return self.sample.documents if self.sample else None

    @property
    def whole_texts(self) -> Sequence[str]:
        """Documents as `embed` reads them, which are timed and priced."""
        whole: Sequence[str] = self.sample.documents["text"].to_pylist() if self.sample else self.texts
        return whole


def prepare_sweep(config: SweepConfig) -> SweepPlan:
    """Resolve the models, read the labeled sets, draw the sample; all problems are raised at once."""
    problems = Problems()
    check = problems.check
    model = check(partial(_resolve, config.embedding.model_copy(update={"calibration": None}), config.grid, config, "grid"))
    models = check(partial(_resolve_chunkings, model, config)) if model else None
    calibration = check(partial(_load_calibration, config.embedding.calibration, model)) if model else None
    if model and config.grid.float8:
        check(partial(_check_float8, model, config))
    local = {f"baselines[{number}]": each for number, each in enumerate(config.baselines) if not each.is_api}
    baselines = [check(partial(_resolve_baseline, each, config, where)) for where, each in local.items()]
    quality, seed = config.quality, config.sample.seed
    locate = partial(Location, options=quality.storage_options)
    labeled: list[Retrieval | Similarity | None] = []
    labeled += [check(partial(read_beir, locate(uri), quality, seed)) for uri in quality.beir]
    labeled += [check(partial(read_similarity, locate(uri))) for uri in quality.sts]
    drawn = check(partial(_draw_sample, config))
    column = QUERY_COLUMN if quality.query_column else None
    known = None
    if drawn and config.uses_known_items:
        known = check(partial(make_known_items, drawn[0].documents, column, config.sample.queries, seed))
    check(lambda: config.output.location.open().check_writable())
    missing = _check_extras(config)
    problems.found += [*_check_names(config), *missing]
    if quality.mteb and not missing:
        from embedder.sweep.mteb_tasks import find_task  # extra mteb

        for task in quality.mteb:
            check(partial(find_task, task))
    problems.raise_all()
    assert models is not None
    datasets = tuple(each for each in (known, *labeled) if each)
    sample, listing = drawn or (None, None)
    apis = tuple(each for each in config.baselines if each.is_api)
    others = tuple(each for each in baselines if each)
    texts, fitted_on = _choose_texts(sample, datasets), _count_fitted(calibration, sample, datasets)
    return SweepPlan(config, models, others, apis, datasets, texts, sample, listing, calibration, fitted_on)


def _count_fitted(
    calibration: Calibration | None, sample: Sample | None, datasets: Sequence[Retrieval | Similarity]
) -> tuple[int, int] | None:
    if calibration is None or calibration.fitted_texts is None:
        return None
    texts = [text for each in datasets if isinstance(each, Retrieval) and each.name != KNOWN_ITEMS for text in each.documents]
    texts += sample.documents["text"].to_pylist() if sample else []
    return count_seen(texts, calibration.fitted_texts), len(texts)


def _resolve(embedding: EmbeddingConfig, wanted: GridConfig | BaselineConfig, config: SweepConfig, where: str) -> Model:
    resolved = resolve_model(embedding.model_copy(update={"normalize": True}), config.chunking)  # cosines are compared
    if resolved.spec.queries:
        raise ConfigError(f"{where}: {embedding.model!r} has a route for queries, which sweeps do not run; measure it with jobs.search")
    width = find_recipe(resolved.spec).width
    most = resolved.spec.depth
    problems = [f"{where}.depths: {depth}: the model has {most} layers; choose 1 to {most}" for depth in wanted.depths if depth > most]
    problems += [f"{where}.dims: {dim}: the model has {width} components; choose 1 to {width}" for dim in wanted.dims if dim > width]
    if width % 8 and config.grid.has_binary:
        problems.append(f"{where}: the model has {width} components, and binary packs eight into a byte; leave it out of grid.precisions")
    if problems:
        raise ConfigError("\n".join(problems))
    return Model(embedding.model, resolved, choose_depths(most, wanted.depths), choose_dims(width, wanted.dims))


def _resolve_chunkings(model: Model, config: SweepConfig) -> tuple[Model, ...]:
    """Return the model with each chunking; ConfigError holds every chunking that does not fit it, or that cuts as another."""
    (first, _), *others = config.chunkings
    problems, found = Problems(), {model.resolved.spec.space_id: replace(model, chunking=first)}
    for name, chunking in others:
        resolved = problems.check(partial(resolve_model, config.embedding.model_copy(update={"normalize": True}), chunking))
        if resolved is None:
            problems.found[-1] = f"grid.chunkings: {name!r}: {problems.found[-1]}"
            continue
        same = found.setdefault(resolved.spec.space_id, replace(model, resolved=resolved, chunking=name))
        if same.chunking != name:
            problems.found.append(f"grid.chunkings: {name!r} cuts as {same.chunking!r} does; leave one of the two out")
    problems.raise_all()
    return tuple(found.values())


def _resolve_baseline(baseline: BaselineConfig, config: SweepConfig, where: str) -> Model:
    """Resolve another model: only its full depth and width, unless others are set."""
    embedding = EmbeddingConfig(**baseline.model_dump(include=set(EmbeddingConfig.model_fields)))
    model = _resolve(embedding, baseline, config, where)
    depths = tuple(sorted(set(baseline.depths), reverse=True)) or model.depths[:1]
    dims = tuple(sorted(set(baseline.dims), reverse=True)) or model.dims[:1]
    return Model(model.name, model.resolved, depths, dims)


def _check_float8(model: Model, config: SweepConfig) -> None:
    """Raise if the model or the GPU cannot multiply in float8."""
    check_device(choose_machine(config.compute).device)
    spec = model.resolved.spec
    problems = check_float8(spec.model_copy(update={"float8": True}), find_recipe(spec))
    if problems:
        raise ConfigError("\n".join(problems))


def _load_calibration(uri: str | None, model: Model) -> Calibration | None:
    if uri is None:
        return None
    calibration, where = load_calibration(uri), f"embedding.calibration={uri!r}"
    differences = calibration.differences(model.resolved.spec)
    if differences:
        raise ConfigError(f"{where}: was fitted for another model or recipe ({'; '.join(differences)}); make one with jobs.calibrate")
    if calibration.maps and not set(calibration.maps) & set(model.depths):
        depths = ", ".join(map(str, sorted(calibration.maps)))
        raise ConfigError(f"{where}: has maps for depths {depths}, none of them in grid.depths; add one, or leave it out")
    return calibration


def _draw_sample(config: SweepConfig) -> tuple[Sample, Listing] | None:
    """Draw documents of the corpus, with the columns of known-item queries and of templates; None without a source."""
    if config.source is None:
        return None
    source = config.source
    for _, chunking in config.chunkings:
        source = with_context(source, chunking.template)
    columns = {name: key for name, key in source.metadata_columns.items() if name.startswith(CONTEXT_PREFIX)}
    columns |= {QUERY_COLUMN: config.quality.query_column} if config.quality.query_column else {}
    source = source.model_copy(update={"metadata_columns": columns, "metadata_types": dict.fromkeys(columns, "string")})
    listing = list_shards(source)
    listing, metadata = select_shards(source, listing)
    return sample_documents(source, listing, config.sample.documents, config.sample.seed, metadata), listing


def _choose_texts(sample: Sample | None, datasets: Sequence[Retrieval | Similarity]) -> tuple[str, ...]:
    """Return the documents of the known items, so that they are run once, or else of the sample, or else of a labeled set."""
    if sample is not None and not any(each.name == KNOWN_ITEMS for each in datasets):
        return tuple(sample.documents["text"].to_pylist())
    retrieval = [each.documents for each in datasets if isinstance(each, Retrieval)]
    return retrieval[0] if retrieval else tuple(text for each in datasets if isinstance(each, Similarity) for text in each.seconds)


def _check_names(config: SweepConfig) -> list[str]:
    """Return names of models or datasets that are not unique; they name rows and columns."""
    models = [config.embedding.model, *(each.model for each in config.baselines)]
    quality = config.quality
    sets = [PurePosixPath(uri).name for uri in quality.beir] + [PurePosixPath(uri).stem for uri in quality.sts]
    sets += [*quality.mteb, KNOWN_ITEMS, FIDELITY]
    problems = [f"baselines: {name!r} is listed twice; list each model once" for name in _repeated(models)]
    return problems + [f"quality: two sets are named {name!r} after their folder or file; rename one" for name in _repeated(sets)]


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _check_extras(config: SweepConfig) -> list[str]:
    """Return the packages that the settings need and that are not installed."""
    needed = {"pytrec_eval": ("a sweep", "sweep"), "scipy": ("a sweep", "sweep")}
    needed |= {"mteb": ("quality.mteb", "mteb")} if config.quality.mteb else {}
    needed |= {"openai": ("a baseline behind an API", "openai")} if any(each.is_api for each in config.baselines) else {}
    return [
        f"{what} needs the package {package}, which is not installed; pip install '.[{extra}]' from the checkout"
        for package, (what, extra) in needed.items()
        if find_spec(package) is None
    ]
