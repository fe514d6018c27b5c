"""The settings of an embed run: one YAML file is one run, every section frozen, every key known."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from embedder.core.schema import check_metadata_names, name_columns
from embedder.core.spec import API, Exit, Quantization
from embedder.remote import refuse_local_settings, refuse_run_settings
from embedder.sections import Address, NonEmpty, Section, TableAddress

Format = Literal["auto", "parquet", "jsonl", "csv", "text"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Layout = Literal["auto", "padded", "packed"]
Backend = Literal["auto", "torch", "compiled", "openvino"]

CPU_TOKENS = 1_024
"""Token budget on a CPU, where each core has a batch of its own: bfloat16 on 2 cores runs 1.2 x faster than at 4,096 with torch, and 1.06 x
than at 2,048 with OpenVINO; 512 gains nothing more."""


class SourceConfig(Section):
    """Where the documents are and how a record is read."""

    uri: Address
    """Folder, glob or file: a local path, s3://, gs:// or az://."""
    format: Format = "auto"
    """auto goes by suffix: .parquet .jsonl .ndjson .csv .txt, each but parquet also .gz .zst .bz2 .xz."""
    text_columns: tuple[NonEmpty, ...] = ("text",)
    """Keys or columns joined by one space; meta.url reaches into a nested one. Not used by format text."""
    id_column: NonEmpty | None = None
    """Names a document, unique within its shard; left out: shard uri + # + row."""
    metadata_columns: dict[str, NonEmpty] = Field(default_factory=dict)
    """Kept beside the vectors with their own types: a list of keys, or a mapping of new names to keys."""
    metadata_types: dict[str, NonEmpty] = Field(default_factory=dict)
    """Arrow type by metadata name (string, int64, double, bool, timestamp, list<string>); left out: the shards' own."""
    rows_per_unit: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """Documents a unit of work, and so a part of the table, holds at most: some seconds of the encoder."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem, e.g. {endpoint_url: …, anon: true}. Credentials belong in the environment."""

    @field_validator("text_columns", mode="before")
    @classmethod
    def _one_column_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("text_columns")
    @classmethod
    def _at_least_one_column(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one text column is needed")
        return value

    @field_validator("metadata_columns", mode="before")
    @classmethod
    def _a_list_keeps_the_names(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value
        if not all(isinstance(name, str) for name in names):
            raise ValueError("each metadata column is a key, such as title or meta.url")
        return name_columns(names)

    @field_validator("metadata_columns")
    @classmethod
    def _no_reserved_names(cls, value: dict[str, str]) -> dict[str, str]:
        check_metadata_names(value)
        return value

    @model_validator(mode="after")
    def _types_are_of_metadata(self) -> "SourceConfig":
        unknown = sorted(set(self.metadata_types) - set(self.metadata_columns))
        if unknown:
            raise ValueError(
                f"metadata_types names {', '.join(unknown)}, not among metadata_columns ({', '.join(self.metadata_columns) or 'none'})"
            )
        return self


class ChunkingConfig(Section):
    """How a document becomes sequences of at most max_tokens."""

    enabled: bool = True
    """false: one chunk a document, cut at max_tokens and counted as truncated."""
    max_tokens: Annotated[int, Field(ge=4)] | None = None
    """Tokens a chunk, prompt and special tokens included; left out: the model's."""
    overlap_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens that a chunk repeats from the end of the one before."""
    tokenizer: NonEmpty | None = None
    """For openai:NAME: hub name, folder or package:NAME whose tokenizer counts; left out: a token is taken for 3 bytes of UTF-8."""

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> "ChunkingConfig":
        if self.max_tokens is not None and self.overlap_tokens >= self.max_tokens:
            raise ValueError(f"overlap_tokens={self.overlap_tokens}: must be smaller than max_tokens={self.max_tokens}")
        return self


class EmbeddingConfig(Section):
    """The model, and how much of it is run and kept. What is left out comes from the model's own files."""

    model: NonEmpty
    """Hub name, folder, package:NAME (a Python package with a MODEL_DIR), or openai:NAME behind an OpenAI-compatible /v1/embeddings."""
    base_url: Address | None = None
    """For openai:NAME: root of the API, with /v1, part of the space; left out: OPENAI_BASE_URL, or OpenAI. The key is OPENAI_API_KEY."""
    revision: NonEmpty | None = None
    """Hub branch, tag or commit; resolved to the commit and recorded."""
    depth: Annotated[int, Field(ge=1)] | None = None
    """Transformer layers run, counted from 1; left out: all."""
    final_norm: Literal["apply", "skip"] | None = None
    """For families with a norm after the last layer: apply it to the state at depth, or take the raw state; left out: apply."""
    dim: Annotated[int, Field(ge=1)] | None = None
    """Leading components kept; left out: the full width."""
    calibration: NonEmpty | None = None
    """Folder of an artifact that jobs.calibrate made for this model: maps for shallow depths, and the ranges of int8."""
    rotate: bool = False
    """Turn vectors onto the principal axes that calibration holds, before the cut: a small dim then keeps more of them."""
    float8: bool = False
    """Multiply in float8 in the layers' linear modules (CUDA 8.9 or newer; emulated on a CPU): a space of its own, queries stay exact."""
    exit: Exit | None = None
    """calibrated: documents at depth land in the full model's space, where queries run; left out: where calibration has a map."""
    quantization: Quantization = "none"
    """How vectors are stored: none is float32, int8 a byte a component (needs calibration), binary a bit."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """mean, cls or last; left out: the model's."""
    layer_norm: bool | None = None
    """LayerNorm without weights over the full width before the cut; left out: true for nomic_bert, else false."""
    prompt: str | None = None
    """Put before every chunk; left out: the model's document prompt."""
    query_prompt: str | None = None
    """Put before every query by search; left out: the model's query prompt."""
    normalize: bool = True
    """L2 norm 1 after the cut, in float32."""

    @property
    def is_api(self) -> bool:
        """Whether vectors come over the network."""
        return self.model.startswith(API)

    @model_validator(mode="after")
    def _an_api_has_no_layers(self) -> "EmbeddingConfig":
        refuse_local_settings(self)
        return self


class ComputeConfig(Section):
    """What the work runs on. Nothing here changes which space the vectors are in."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where the cluster has GPUs, else cpu."""
    dtype: Dtype = "auto"
    """auto: bfloat16 where the hardware has it and the family allows it, else float32."""
    token_budget: Annotated[int, Field(ge=1)] | None = None
    """Tokens per forward pass, padding included; left out: 1024 on a CPU; on a GPU what its free memory holds, at most 65536."""
    layout: Layout = "auto"
    """packed: sequences end to end, nothing padded; padded: side by side; auto: packed on cuda in half precision, but for MPNet."""
    backend: Backend = "auto"
    """What runs the layers: torch, torch compiled, or on a CPU openvino (extra); auto: openvino where it is there and agrees with torch."""
    actors: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Fewest and most encoder actors; left out: one for each GPU, or one for each CPU node."""
    num_gpus: Annotated[float, Field(gt=0)] | None = None
    """GPUs an actor holds; fractions share one. Left out: 1 on cuda."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs an actor holds, and its threads on device cpu; left out: the node's, less what reading needs."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """Times that a unit may take its encoder down, over all runs, before it is taken apart and the documents at fault are quarantined; or,
    within one run, its reader, before its shard is reported."""
    tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    """Rate of one encoder actor, by which a dry run is priced; left out: that of the table's last run."""
    price_per_device_hour_usd: Annotated[float, Field(ge=0)] | None = None
    """Price of an hour of what one encoder actor holds; left out: no cost is shown."""
    price_per_million_tokens_usd: Annotated[float, Field(ge=0)] | None = None
    """For openai:NAME: what a million tokens cost; left out: no cost is shown."""

    @field_validator("actors", mode="before")
    @classmethod
    def _one_number_is_a_fixed_size(cls, value: Any) -> Any:
        return [value, value] if isinstance(value, int | str) else value

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "ComputeConfig":
        if self.actors and self.actors[0] > self.actors[1]:
            raise ValueError(f"actors={list(self.actors)}: the fewest come first, e.g. [{self.actors[1]}, {self.actors[0]}]")
        if self.device == "cpu" and self.num_gpus:
            raise ValueError(f"num_gpus={self.num_gpus} has no effect on device cpu; remove one of the two")
        if self.device == "cuda" and self.dtype == "float32" and self.layout == "packed":
            raise ValueError("layout=packed needs bfloat16 or float16 on cuda, not dtype=float32; change one of the two")
        if self.backend == "openvino":
            if self.device == "cuda":
                raise ValueError("backend=openvino runs on device cpu, not cuda; change one of the two")
            if self.dtype == "float16":
                raise ValueError("backend=openvino computes in bfloat16 or float32, not dtype=float16; change one of the two")
            if self.layout == "packed":
                raise ValueError("backend=openvino takes padded batches, not layout=packed; change one of the two")
        return self


class TableConfig(Section):
    """A table that is read."""

    uri: NonEmpty
    """Folder of the Delta table: a local path, s3://, gs:// or az://."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem, e.g. {endpoint_url: …}. Credentials belong in the environment."""


class CutTableConfig(Section):
    """A table made from another one's vectors."""

    uri: TableAddress
    """Folder of the Delta table: a local path, s3://, gs:// or az://."""
    dim: Annotated[int, Field(ge=1)] | None = None
    """Leading components kept; left out: all."""
    quantization: Quantization = "none"
    """none, int8 (needs calibration) or binary."""
    rotate: bool = False
    """Turn whole vectors onto the principal axes that calibration holds, before the cut; those of a turned parent are so already."""
    calibration: NonEmpty | None = None
    """Folder of an artifact of jobs.calibrate that holds the axes, and the ranges of int8."""
    replace: bool = False
    """Swap everything in one commit, although the table holds another spec."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem, e.g. {endpoint_url: …}. Credentials belong in the environment."""


class OutputConfig(Section):
    """Where the table is and what it keeps."""

    uri: TableAddress
    """Folder of the Delta table: a local path, s3://, gs:// or az://."""
    store_text: bool = True
    """Keep the text of each chunk beside its vector."""
    replace: bool = False
    """Where the table holds another spec, embed everything and swap it in one commit; its cuts follow."""
    cuts: tuple[CutTableConfig, ...] = ()
    """Tables brought in step after this one, from its vectors: [{uri: …, dim: 128, quantization: binary}]."""
    max_removed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A run after which more than this fraction of the rows would be gone is refused at its commit; 1 allows any, and an empty source."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem, e.g. {endpoint_url: …}. Credentials belong in the environment."""


class GateConfig(Section):
    """Spend only on what was measured to be good enough."""

    report: NonEmpty
    """report.json of a sweep of this model and source."""
    min_quality: Annotated[float, Field(gt=0, le=1)] = 0.97
    """Least share of the full model's quality that the setting kept there, at the lower end of its 95% interval."""
    rescored: bool = False
    """Of binary: judge it as searches find that order what bits found by the float query, as jobs.search does and no store by itself."""


class EmbedConfig(Section):
    """One embed run: make the table at output.uri match the documents at source.uri."""

    source: SourceConfig
    chunking: ChunkingConfig = ChunkingConfig()
    embedding: EmbeddingConfig
    compute: ComputeConfig = ComputeConfig()
    output: OutputConfig
    gate: GateConfig | None = None
    """Refuse a setting that a sweep's report does not find good enough; left out: any setting runs."""

    @model_validator(mode="after")
    def _settings_fit_the_model(self) -> "EmbedConfig":
        refuse_run_settings(self)
        return self
