"""Settings become a study that is checked, before the first forward pass; or one ConfigError with every problem."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import TypeVar

from embedder.config.compute import ComputeConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, EmbedderError
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.model.calibration import Calibration, load_calibration
from embedder.model.files.recipe import locate_model, read_recipe
from embedder.model.float8 import check_device
from embedder.model.resolve import ResolvedModel, check_float8, resolve_model
from embedder.source.columns import inspect_source
from embedder.source.sampling import Sample, sample_documents
from embedder.source.shards import Listing, list_shards
from embedder.sweep.candidates import choose_machine
from embedder.sweep.config import BaselineConfig, GridConfig, SweepConfig
from embedder.sweep.datasets import KNOWN_ITEMS, Retrieval, Similarity, make_known_items, read_beir, read_similarity
from embedder.sweep.evaluate import FIDELITY
from embedder.sweep.grid import check_grid, choose_depths, choose_dims

T = TypeVar("T")
QUERY_COLUMN = "query"


@dataclass(frozen=True, slots=True)
class Model:
    """A model of this machine with what is tried of it, the deepest and widest first."""

    name: str
    resolved: ResolvedModel
    depths: tuple[int, ...]
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """A sweep that is checked: everything is read, nothing is run."""

    config: SweepConfig
    model: Model
    rivals: tuple[Model, ...]
    apis: tuple[BaselineConfig, ...]
    datasets: tuple[Retrieval | Similarity, ...]
    texts: tuple[str, ...]
    """Documents as they are compared: those of known items are without their queries."""
    sample: Sample | None
    listing: Listing | None
    calibration: Calibration | None = None
    """Maps whose exits, and a rotation whose cuts, are tried beside the native ones."""

    @property
    def whole_texts(self) -> Sequence[str]:
        """Documents as `embed` would see them: what is timed and priced."""
        whole: Sequence[str] = self.sample.documents["text"].to_pylist() if self.sample else self.texts
        return whole


def prepare_study(config: SweepConfig) -> Study:
    """Resolve the models, read the labelled sets, draw the sample; all problems are reported at once."""
    problems: list[str] = []
    plain = config.embedding.model_copy(update={"calibration": None})
    model = _collect(problems, partial(_resolve, plain, config.grid, config.chunking, "grid"))
    calibration = _collect(problems, partial(_load_calibration, config.embedding.calibration, model)) if model else None
    rivals = [
        _collect(problems, partial(_resolve_rival, number, each, config)) for number, each in enumerate(config.baselines) if not each.is_api
    ]
    labelled: list[Retrieval | Similarity | None] = []
    labelled += [_collect(problems, partial(read_beir, uri, config.quality, config.sample.seed)) for uri in config.quality.beir]
    labelled += [_collect(problems, partial(read_similarity, Location(uri, config.quality.storage_options))) for uri in config.quality.sts]
    drawn = _collect(problems, partial(draw_sample, config.source, config)) if config.source else None
    known = _collect(problems, partial(_known_items, drawn[0], config)) if drawn and config.uses_known_items else None
    if model and config.grid.float8:
        _collect(problems, partial(_check_float8, model.resolved.spec, config.compute))
    _collect(problems, config.output.location.open().check_writable)
    lacking = check_extras(config)
    problems += [*_check_names(config), *lacking]
    if config.quality.mteb and not lacking:
        from embedder.sweep.mteb_tasks import find_task  # extra mteb

        for task in config.quality.mteb:
            _collect(problems, partial(find_task, task))
    if problems or model is None:
        raise ConfigError("\n".join(problems))
    datasets = tuple(each for each in (known, *labelled) if each is not None)
    texts = _texts_of(drawn[0] if drawn else None, known, datasets)
    apis = tuple(each for each in config.baselines if each.is_api)
    sample, listing = drawn or (None, None)
    return Study(config, model, tuple(each for each in rivals if each), apis, datasets, texts, sample, listing, calibration)


def _check_float8(spec: EmbeddingSpec, compute: ComputeConfig) -> None:
    """Refuse a model or a GPU that cannot multiply in float8."""
    check_device(choose_machine(compute).device)
    problems = check_float8(spec.model_copy(update={"float8": True}), read_recipe(locate_model(spec.model, spec.revision)[0]))
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


def draw_sample(source: SourceConfig, config: SweepConfig) -> tuple[Sample, Listing]:
    """Draw documents of the corpus, with the column that known-item queries come from."""
    column = config.quality.query_column
    asked = source.model_copy(
        update={"metadata_columns": {QUERY_COLUMN: column} if column else {}, "metadata_types": {QUERY_COLUMN: "string"} if column else {}}
    )
    listing = list_shards(asked)
    metadata = inspect_source(asked, listing.shards)
    return sample_documents(asked, listing, config.sample.documents, config.sample.seed, metadata), listing


def _known_items(sample: Sample, config: SweepConfig) -> Retrieval:
    column = QUERY_COLUMN if config.quality.query_column else None
    return make_known_items(sample.documents, column, config.sample.queries, config.sample.seed)


def _texts_of(sample: Sample | None, known: Retrieval | None, datasets: Sequence[Retrieval | Similarity]) -> tuple[str, ...]:
    """Take the documents as the known items have them, so that they are run once; without a source, those of a labelled set."""
    if known is not None:
        return known.documents
    if sample is not None:
        return tuple(sample.documents["text"].to_pylist())
    retrieval = [each.documents for each in datasets if isinstance(each, Retrieval)]
    return retrieval[0] if retrieval else tuple(text for each in datasets if isinstance(each, Similarity) for text in each.seconds)


def _resolve(embedding: EmbeddingConfig, grid: GridConfig, chunking: ChunkingConfig, where: str) -> Model:
    resolved = resolve_model(embedding, chunking)
    width = read_recipe(locate_model(resolved.spec.model, resolved.spec.revision)[0]).width
    problems = check_grid(where, grid, resolved.spec.depth, width)
    if problems:
        raise ConfigError("\n".join(problems))
    return Model(embedding.model, resolved, choose_depths(resolved.spec.depth, grid.depths), choose_dims(width, grid.dims))


def _resolve_rival(number: int, baseline: BaselineConfig, config: SweepConfig) -> Model:
    """Resolve another model: at its full depth and width alone, unless it is asked for others."""
    grid = config.grid.model_copy(update={"depths": baseline.depths, "dims": baseline.dims})
    embedding = EmbeddingConfig(**baseline.model_dump(include=set(EmbeddingConfig.model_fields)))
    model = _resolve(embedding, grid, config.chunking, f"baselines[{number}]")
    depths = [depth for depth in model.depths if not baseline.depths or depth in baseline.depths][: None if baseline.depths else 1]
    dims = [dim for dim in model.dims if not baseline.dims or dim in baseline.dims][: None if baseline.dims else 1]
    return Model(model.name, model.resolved, tuple(depths), tuple(dims))


def _check_names(config: SweepConfig) -> list[str]:
    """Rows are named by their model, columns by their dataset."""
    models = [config.embedding.model, *(each.model for each in config.baselines)]
    quality = config.quality
    sets = [PurePosixPath(uri).name for uri in quality.beir] + [PurePosixPath(uri).stem for uri in quality.sts]
    sets += [*quality.mteb, KNOWN_ITEMS, FIDELITY]  # which are of the sweep's own
    problems = [f"baselines: {name!r} is there twice; each model is named once" for name in _repeated(models)]
    return problems + [f"quality: two sets are named {name!r}, as their folder or file is; rename one" for name in _repeated(sets)]


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def check_extras(config: SweepConfig) -> list[str]:
    """Say which packages the settings need and are not installed."""
    needed = [("pytrec_eval", "study", "a sweep", True), ("scipy", "study", "a sweep", True)]
    needed.append(("mteb", "mteb", "quality.mteb", bool(config.quality.mteb)))
    needed.append(("openai", "openai", "a baseline behind an API", any(each.is_api for each in config.baselines)))
    return [
        f"{what} needs the package {package}, which is not installed; pip install '.[{extra}]' from the checkout"
        for package, extra, what, is_needed in needed
        if is_needed and find_spec(package) is None
    ]


def _collect(problems: list[str], check: Callable[[], T]) -> T | None:
    """Run a check, keeping its complaint so that all are reported at once."""
    try:
        return check()
    except EmbedderError as error:
        problems.append(str(error))
        return None
