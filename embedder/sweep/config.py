"""The settings of the studies: what a sweep tries, on what, and how it picks; what a calibration fits."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from embedder.config.compute import ComputeConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.section import Located, NonEmpty, OneOrMore, Positive, Section
from embedder.config.source import SourceConfig
from embedder.core.spec import API

Precision = Literal["float32", "int8", "binary", "binary_rescored"]
QuerySide = Literal["same", "full"]


class GridConfig(Section):
    """What is tried; every combination is, from one pass over the sample."""

    depths: Annotated[tuple[Positive, ...], OneOrMore] = ()
    """Layers run; left out: six, spread evenly over the model's. The full depth is always tried too."""
    dims: Annotated[tuple[Positive, ...], OneOrMore] = ()
    """Leading components kept; left out: the full width and four halvings of it. The full width is always tried too."""
    precisions: Annotated[tuple[Precision, ...], OneOrMore] = ("float32", "int8", "binary", "binary_rescored")
    """How a stored component is kept; binary_rescored finds with bits and orders the best by the float query.
    float32 is always tried too."""
    query_sides: Annotated[tuple[QuerySide, ...], OneOrMore] = ("same", "full")
    """Queries embedded as the documents are, or by the full model; never in float8."""
    float8: bool = False
    """Try every setting of the model with layers in float8 as well, from one more pass over the documents."""


class SampleConfig(Section):
    """How much of the corpus is looked at."""

    documents: Annotated[int, Field(ge=10)] = 2000
    """Documents drawn at random, spread over the shards by size."""
    queries: Annotated[int, Field(ge=10)] = 500
    """Known-item queries, and documents whose neighbours are compared with the full model's."""
    seed: int = 0


class QualityConfig(Section):
    """What quality is measured on. Without labels, documents have to be found by their own title or first sentence."""

    beir: Annotated[tuple[NonEmpty, ...], OneOrMore] = ()
    """Folders with corpus.jsonl, queries.jsonl and qrels/*.tsv."""
    qrels: NonEmpty = "test"
    """Which of the files in qrels/ is read."""
    max_documents: Annotated[int, Field(gt=100)] | None = None  # recall@100 of 100 is 1 by any vectors
    """Keep the judged documents of a BEIR corpus and a random choice of the others; scores are then not those of the whole."""
    sts: Annotated[tuple[NonEmpty, ...], OneOrMore] = ()
    """CSV or TSV files with a header: sentence1, sentence2, score, or else the first three columns."""
    mteb: Annotated[tuple[NonEmpty, ...], OneOrMore] = ()
    """Tasks of the mteb package by name (extra mteb); they are downloaded from the hub."""
    known_item: bool | None = None
    """Documents of the sample have to be found; left out: on where no other quality is measured and there is a source."""
    query_column: NonEmpty | None = None
    """Column of the source that is the known-item query, such as a title; left out: the document's first sentence."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem of beir and sts."""

    @property
    def has_labels(self) -> bool:
        """Whether anything but the corpus itself says what is right."""
        return bool(self.beir or self.sts or self.mteb)


class BaselineConfig(EmbeddingConfig):
    """Another model in the same table: a hub name, folder or package:NAME, or openai:NAME behind an API."""

    depths: Annotated[tuple[Positive, ...], OneOrMore] = ()
    """Layers run; left out: all."""
    dims: Annotated[tuple[Positive, ...], OneOrMore] = ()
    """Leading components kept; left out: the full width."""
    price_per_million_tokens_usd: Annotated[float, Field(ge=0)] | None = None
    """For openai:NAME: what is paid."""

    @model_validator(mode="after")
    def _only_what_has_an_effect(self) -> "BaselineConfig":
        if self.depth is not None or self.dim is not None:
            raise ValueError("a baseline takes depths and dims, lists, and not depth and dim")
        if self.exit is not None or self.quantization != "none" or self.calibration is not None or self.rotate or self.float8:
            raise ValueError(
                "a baseline leaves natively and its precisions are the grid's; leave out exit, quantization, calibration, rotate, float8"
            )
        if not self.is_api and self.price_per_million_tokens_usd is not None:
            raise ValueError(f"price_per_million_tokens_usd is for models named {API}NAME, not {self.model!r}")
        if self.is_api and self.depths:
            raise ValueError(f"depths={list(self.depths)}: a model behind an API has no depths; leave them out")
        if self.is_api and not self.dims:
            raise ValueError(f"dims are needed for {self.model!r}: an API does not say how many there are; the largest is asked for")
        return self


class PickConfig(Section):
    """How the recommended setting is chosen: the cheapest that keeps enough, or the best that can be paid."""

    min_quality: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the full model's quality that must be kept, at the lower end of the 95% interval; left out: 0.97, or none with a budget."""
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """Most that embedding the corpus and keeping its index may cost; needs compute.price_per_device_hour_usd."""
    price_per_index_gb_month_usd: Annotated[float, Field(ge=0)] | None = None
    """Price of keeping a GB (10^9 bytes) of vectors for a month; left out: the index is not priced."""
    index_months: Annotated[float, Field(gt=0)] = 12
    """Months that the index is kept."""


class StudyOutputConfig(Located, Section):
    """Where the report goes."""

    uri: NonEmpty
    """Folder: report.html, report.json, report.csv, and taps/, from which an interrupted sweep goes on."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem."""


class SweepConfig(Section):
    """One study: what every depth, size and precision costs and keeps, on this corpus and this machine."""

    source: SourceConfig | None = None
    """The corpus; left out: quality is measured on labelled sets alone, and costs are those of their documents."""
    chunking: ChunkingConfig = ChunkingConfig()
    embedding: EmbeddingConfig
    """The model, and perhaps a calibration; depth, dim and quantization are the grid's."""
    grid: GridConfig = GridConfig()
    sample: SampleConfig = SampleConfig()
    quality: QualityConfig = QualityConfig()
    compute: ComputeConfig = ComputeConfig()
    baselines: tuple[BaselineConfig, ...] = ()
    """Other models in the same table."""
    pick: PickConfig = PickConfig()
    output: StudyOutputConfig

    @property
    def uses_known_items(self) -> bool:
        """Whether documents of the sample have to be found."""
        chosen = self.quality.known_item
        return self.source is not None and not self.quality.has_labels if chosen is None else chosen

    @model_validator(mode="after")
    def _float8_is_of_the_grid(self) -> "SweepConfig":
        if self.embedding.float8:
            raise ValueError("embedding.float8: a sweep tries it beside what it is compared with; set grid.float8")
        if self.grid.float8 and self.compute.backend == "openvino":
            raise ValueError("compute.backend=openvino: has no products in float8; leave it out, or grid.float8")
        return self

    @model_validator(mode="after")
    def _output_apart_from_source(self) -> "SweepConfig":
        if self.source is not None and PurePosixPath(self.output.uri).is_relative_to(self.source.uri.rstrip("/")):
            raise ValueError(
                f"output.uri={self.output.uri!r} lies in source.uri={self.source.uri!r}: report.csv would become a shard of the corpus"
            )
        return self

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "SweepConfig":
        if self.embedding.depth is not None or self.embedding.dim is not None:
            raise ValueError("embedding.depth and embedding.dim: a sweep tries several; set grid.depths and grid.dims")
        if self.embedding.exit is not None or self.embedding.quantization != "none" or self.embedding.rotate:
            raise ValueError(
                "embedding.exit, .quantization and .rotate: a sweep tries several; set embedding.calibration and grid.precisions"
            )
        if not all(each.normalize for each in (self.embedding, *self.baselines)):
            raise ValueError("embedding.normalize=false: a sweep compares cosines; leave it out")
        if self.embedding.is_api:
            raise ValueError(f"embedding.model={self.embedding.model!r}: an API has no depths; name it among baselines")
        if self.source is None and not self.quality.has_labels:
            raise ValueError("neither source nor quality.beir, .sts or .mteb is set: there is nothing to measure on")
        if self.source is None and not (self.quality.beir or self.quality.sts):
            raise ValueError("quality.mteb alone gives no texts to time: set a source, quality.beir or quality.sts beside it")
        if self.quality.known_item and self.source is None:
            raise ValueError("quality.known_item needs a source")
        if self.quality.query_column and not self.uses_known_items:
            raise ValueError(
                f"quality.query_column={self.quality.query_column!r} has no effect without known items; set quality.known_item"
            )
        if self.pick.budget_usd is not None and self.compute.price_per_device_hour_usd is None:
            raise ValueError("pick.budget_usd needs compute.price_per_device_hour_usd: what an hour of this machine's device costs")
        return self
