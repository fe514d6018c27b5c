"""Settings of a sweep: the grid, what quality is measured on, and how the recommended setting is picked."""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from embedder.config.compute import ComputeConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.section import Located, NonEmpty, OneOrMore, Positive, Section
from embedder.config.source import SourceConfig
from embedder.core.spec import API
from embedder.core.template import parse_template

Precision = Literal["float32", "int8", "binary", "binary_rescored"]
QuerySide = Literal["same", "full"]


class ChunkingChoice(ChunkingConfig):
    """A section like `chunking`, whose defaults it has."""

    name: NonEmpty | None = None
    """Names its rows; default: its settings."""


class GridConfig(Section):
    """Settings to try. Every combination is scored from one pass over the sample."""

    depths: Annotated[tuple[Positive, ...], OneOrMore] = ()
    """Layers run; default: six depths spread evenly. The full depth is always tried too."""
    dims: Annotated[tuple[Positive, ...], OneOrMore] = ()
    """Leading components kept; default: the full width and four halvings of it. The full width is always tried too."""
    precisions: Annotated[tuple[Precision, ...], OneOrMore] = ("float32", "int8", "binary", "binary_rescored")
    """Storage of a component; binary_rescored searches bits, then reranks the best with the float query. float32 is always tried too."""
    query_sides: Annotated[tuple[QuerySide, ...], OneOrMore] = ("same", "full")
    """Queries embedded like the documents (same) or by the full model (full); never in float8."""
    float8: bool = False
    """Also try every setting of the model with layers in float8; takes one more pass over the documents."""
    chunkings: tuple[ChunkingChoice, ...] = ()
    """Chunkings to compare with `chunking`; each takes one more pass. A document then ranks by its best chunk, else by its first."""

    @property
    def has_binary(self) -> bool:
        """Whether bits are tried, which are packed eight into a byte."""
        return any(each.startswith("binary") for each in self.precisions)


class SampleConfig(Section):
    """Size of the sample drawn from the corpus."""

    documents: Annotated[int, Field(ge=10)] = 2000
    """Documents drawn at random, spread over the shards by size."""
    queries: Annotated[int, Field(ge=10)] = 500
    """Known-item queries, and documents whose neighbors are compared with the full model's."""
    seed: int = 0


class QualityConfig(Section):
    """Data that quality is measured on. Without labels, queries are the documents' own titles or first sentences."""

    beir: Annotated[tuple[NonEmpty, ...], OneOrMore] = ()
    """Folders with corpus.jsonl, queries.jsonl and qrels/*.tsv."""
    qrels: NonEmpty = "test"
    """File read from qrels/, without .tsv."""
    max_documents: Annotated[int, Field(gt=100)] | None = None  # recall@100 of 100 documents is always 1
    """Keep the relevant documents of a BEIR corpus and a random sample of the rest; scores then differ from the whole corpus's."""
    sts: Annotated[tuple[NonEmpty, ...], OneOrMore] = ()
    """CSV or TSV files with a header: columns sentence1, sentence2, score, or else the first three."""
    mteb: Annotated[tuple[NonEmpty, ...], OneOrMore] = ()
    """Names of mteb tasks (extra mteb), downloaded from the hub."""
    known_item: bool | None = None
    """Search for documents of the sample; default: true if there is a source and no other quality data."""
    query_column: NonEmpty | None = None
    """Source column used as the known-item query, such as a title; default: the document's first sentence."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem of beir and sts."""

    @property
    def has_labels(self) -> bool:
        """Whether any labeled data is set."""
        return bool(self.beir or self.sts or self.mteb)


class BaselineConfig(EmbeddingConfig):
    """Another model in the same table: a hub name, folder or package:NAME, or openai:NAME behind an API."""

    depths: Annotated[tuple[Positive, ...], OneOrMore] = ()
    """Layers run; default: all."""
    dims: Annotated[tuple[Positive, ...], OneOrMore] = ()
    """Leading components kept; default: the full width."""
    price_per_million_tokens_usd: Annotated[float, Field(ge=0)] | None = None
    """For openai:NAME: price of a million tokens."""

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "BaselineConfig":
        if self.depth is not None or self.dim is not None:
            raise ValueError("a baseline has depths and dims, lists, instead of depth and dim")
        if self.exit is not None or self.quantization != "none" or self.calibration is not None or self.rotate or self.float8:
            raise ValueError(
                "a baseline exits natively and is tried at the grid's precisions; leave out exit, quantization, calibration, rotate, float8"
            )
        if not self.is_api and self.price_per_million_tokens_usd is not None:
            raise ValueError(f"price_per_million_tokens_usd is for models named {API}NAME, not {self.model!r}")
        if self.is_api and self.depths:
            raise ValueError(f"depths={list(self.depths)}: a model behind an API has no depths; leave them out")
        if self.is_api and not self.dims:
            raise ValueError(f"dims are needed for {self.model!r}: the API does not report its size; the largest is requested")
        return self


class PickConfig(Section):
    """Rule for the recommended setting: the cheapest that keeps enough quality, or the best within a budget."""

    min_quality: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the full model's quality to keep, at the lower end of the 95% interval; default: 0.97, or none with a budget."""
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """Highest cost of embedding the corpus and keeping its index; needs compute.price_per_device_hour_usd."""
    price_per_index_gb_month_usd: Annotated[float, Field(ge=0)] | None = None
    """Price of keeping a GB (10^9 bytes) of vectors for a month; default: the index is not priced."""
    index_months: Annotated[float, Field(gt=0)] = 12
    """Months that the index is kept."""


class ReportConfig(Located, Section):
    """Location of the report."""

    uri: NonEmpty
    """Folder for report.html, report.json, report.csv, and taps/, from which an interrupted sweep resumes."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem."""


class SweepConfig(Section):
    """One sweep: cost and quality of every depth, size and precision, on this corpus and this machine."""

    source: SourceConfig | None = None
    """The corpus; left out: only labeled data is scored, and costs are those of its documents."""
    chunking: ChunkingConfig = ChunkingConfig()
    embedding: EmbeddingConfig
    """The model, and optionally a calibration; depth, dim and quantization belong to the grid."""
    grid: GridConfig = GridConfig()
    sample: SampleConfig = SampleConfig()
    quality: QualityConfig = QualityConfig()
    compute: ComputeConfig = ComputeConfig()
    baselines: tuple[BaselineConfig, ...] = ()
    """Other models in the same table."""
    pick: PickConfig = PickConfig()
    output: ReportConfig

    @property
    def chunkings(self) -> Sequence[tuple[str, ChunkingConfig]]:
        """Chunkings to compare with their names, that of `chunking` first; without grid.chunkings only that one, named ''."""
        if not self.grid.chunkings:
            return [("", self.chunking)]
        choices = [(None, self.chunking), *((each.name, each) for each in self.grid.chunkings)]
        return [(name or describe_chunking(each), ChunkingConfig(**_list_settings(each))) for name, each in choices]

    @property
    def uses_known_items(self) -> bool:
        """Whether quality includes known-item search in the sample."""
        chosen = self.quality.known_item
        return self.source is not None and not self.quality.has_labels if chosen is None else chosen

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "SweepConfig":
        embedding = self.embedding
        if self.grid.float8 and self.compute.backend == "openvino":
            raise ValueError("compute.backend=openvino: does not multiply in float8; leave it out, or grid.float8")
        dims = {"grid": self.grid.dims} | {f"baselines[{number}]": each.dims for number, each in enumerate(self.baselines)}
        uneven = [f"{where}.dims: {dim}" for where, each in dims.items() for dim in each if dim % 8]
        if uneven and self.grid.has_binary:
            raise ValueError(
                f"{', '.join(uneven)}: binary packs eight components into a byte; choose multiples of 8, or grid.precisions without it"
            )
        if embedding.float8:
            raise ValueError("embedding.float8: a sweep compares it with other dtypes; set grid.float8")
        if embedding.depth is not None or embedding.dim is not None:
            raise ValueError("embedding.depth and embedding.dim: a sweep tries several; set grid.depths and grid.dims")
        if embedding.exit is not None or embedding.quantization != "none" or embedding.rotate:
            raise ValueError(
                "embedding.exit, .quantization and .rotate: a sweep tries several; set embedding.calibration and grid.precisions"
            )
        if any(each.normalize is False for each in (embedding, *self.baselines)):
            raise ValueError("embedding.normalize=false: a sweep compares cosines; leave it out")
        if self.chunking.late and not self.grid.chunkings:
            raise ValueError("chunking.late=true: without grid.chunkings a sweep embeds a document as one sequence; leave it out")
        if any(each.late for _, each in self.chunkings) and self.compute.backend == "openvino":
            raise ValueError("compute.backend=openvino: does not pool by chunks; leave it out, or late")
        if embedding.is_api:
            raise ValueError(f"embedding.model={embedding.model!r}: an API has no depths; list it in baselines")
        return self

    @model_validator(mode="after")
    def _chunkings_fit_together(self) -> "SweepConfig":
        names, tokenizers = ([*each] for each in zip(*((name, each.tokenizer) for name, each in self.chunkings), strict=True))
        if given := next(filter(None, tokenizers), None):
            raise ValueError(f"chunking.tokenizer={given!r}: is for models named {API}NAME; leave it out")
        problems = {f"{name!r} names two chunkings, that of chunking included; leave one out": names.count(name) > 1 for name in names} | {
            "cuts are compared for one model; leave out baselines": bool(self.baselines),
            "quality.sts and .mteb score whole texts, which no chunking cuts; leave them out": bool(self.quality.sts or self.quality.mteb),
            "embedding.calibration is fitted for one chunking; leave one of the two out": self.embedding.calibration is not None,
        }
        for problem, is_met in problems.items():
            if is_met and self.grid.chunkings:
                raise ValueError(f"grid.chunkings: {problem}")
        return self

    @model_validator(mode="after")
    def _templates_fit_together(self) -> "SweepConfig":
        """Refuse templates whose columns are not read, or that show a query to the document that it must find."""
        if self.chunking.template is not None and not self.grid.chunkings:
            raise ValueError("chunking.template: without grid.chunkings a sweep embeds texts without their columns; leave it out")
        templates = [each.template for _, each in self.chunkings if each.template is not None]
        columns = sorted({name for template in templates for name in parse_template(template).columns})
        if columns and self.quality.beir:
            raise ValueError(f"grid.chunkings: {{{columns[0]}}}: documents of quality.beir have no columns; leave one of the two out")
        if self.source is None or not self.uses_known_items:
            return self
        column, named = self.quality.query_column, self.source.metadata_columns
        asked = [column] if column else self.source.text_columns
        for name in columns:
            if named.get(name, name) in asked:
                queries = f"quality.query_column={column!r}" if column else f"source.text_columns={list(asked)}"
                raise ValueError(
                    f"grid.chunkings: {{{name}}} shows known-item queries, made of {queries}, to their documents; choose others"
                )
        return self

    @model_validator(mode="after")
    def _data_fits_together(self) -> "SweepConfig":
        quality = self.quality
        if self.source is not None and PurePosixPath(self.output.uri).is_relative_to(self.source.uri.rstrip("/")):
            raise ValueError(
                f"output.uri={self.output.uri!r}: is inside source.uri={self.source.uri!r}, so report.csv would become a shard; "
                "choose another folder"
            )
        if self.source is None and not quality.has_labels:
            raise ValueError("source, quality.beir, .sts and .mteb are not set: there is nothing to measure on; set one")
        if self.source is None and not (quality.beir or quality.sts):
            raise ValueError("quality.mteb alone provides no texts to time; also set a source, quality.beir or quality.sts")
        if self.source is None and quality.known_item:
            raise ValueError("quality.known_item needs a source")
        if not quality.beir and (quality.max_documents is not None or quality.qrels != "test"):
            given = f"max_documents={quality.max_documents}" if quality.max_documents is not None else f"qrels={quality.qrels!r}"
            raise ValueError(f"quality.{given} has no effect without quality.beir; leave it out, or set quality.beir")
        if quality.query_column and not self.uses_known_items:
            raise ValueError(f"quality.query_column={quality.query_column!r} has no effect without known items; set quality.known_item")
        if self.pick.budget_usd is not None and self.compute.price_per_device_hour_usd is None:
            raise ValueError("pick.budget_usd needs compute.price_per_device_hour_usd, the price of an hour of this machine's device")
        return self


def describe_chunking(chunking: ChunkingConfig) -> str:
    """Return the settings that differ from the defaults, as the name of a chunking."""
    settings = _list_settings(chunking)
    return ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()) or "default"


def _list_settings(chunking: ChunkingConfig) -> dict[str, Any]:
    """Return the settings that differ from the defaults, as YAML has them."""
    return chunking.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
