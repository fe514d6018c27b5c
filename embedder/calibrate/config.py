"""Settings of a calibration, and of the artifact that it writes."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from embedder.config.compute import ComputeConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.section import NonEmpty, OneOrMore, Positive, Section
from embedder.config.source import SourceConfig
from embedder.core.spec import API

LEAST_STEP = 4
"""Fewest chunks in a training step: features are standardized over the chunks of a step."""


class AttentionSettings(Section):
    """Training of the attention-pooling queries that the maps read at every layer."""

    chunks: Annotated[int, Field(ge=0)] | None = None
    """Chunks to train on, drawn from the chunks that maps are fitted on; synthetic ones fill up. 0 keeps the starting queries, by rarity
    and by position. Memory holds a square matrix over these chunks. Default: 4096, and of a model with narrower states than 12 layers of
    768 as many as have as large ones, at most 12,288."""
    queries: Literal[2, 4] | None = None
    """Queries of a layer, each of which gives a weighted mean of its states. Default: 4, and 2 where states have more than 512
    components, so that a map reads more layers."""
    epochs: Positive = 3
    """Passes over these chunks."""
    batch_chunks: Annotated[int, Field(ge=LEAST_STEP)] = 32
    """Chunks per step. Memory holds the states of all their tokens at every layer read."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    """Peak learning rate of Adam for the queries."""

    @model_validator(mode="after")
    def _chunks_for_a_step(self) -> "AttentionSettings":
        if self.chunks is not None and 0 < self.chunks < LEAST_STEP:
            raise ValueError(f"chunks={self.chunks}: too few for one step; choose 0 to skip training, or at least {LEAST_STEP}")
        return self


class BroadText(SourceConfig):
    """Text that is not of the corpus, beside the sample: it has the settings of a source, and these."""

    num_documents: Positive = 8000
    """Documents to draw at random. Those that the sample has as well are left out."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of each of its chunks where one of the sample weighs 1."""


class CalibrateSettings(Section):
    """Depths and dims to fit, and the size of the sample."""

    attention: AttentionSettings = AttentionSettings()
    broad: BroadText | None = None
    """Unlabeled text of any other kind that maps are also fitted on, such as news. All else comes from the sample alone."""
    feed_forward: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the neurons of each feed-forward block to keep, in the layers that exits run: those that matter most on the sample, their
    output weights fitted again. Half of them take a fifth to a third of the time away. Below 1 the full depth has an exit too."""
    depths: Annotated[tuple[Positive, ...] | None, OneOrMore] = None
    """Depths to fit exits and int8 ranges for. Default: all."""
    dims: Annotated[tuple[Positive, ...] | None, OneOrMore] = None
    """Dims to fit int8 ranges for. Default: the full width and the powers of two from 32 up."""
    num_documents: Annotated[int, Field(ge=100)] = 20_000
    """Documents to draw from the source at random. More are better, up to about ten per feature of a map."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the documents, at least 30, that is not fitted on. It selects the ridge strength and measures the maps."""
    synthetic: Annotated[float, Field(ge=0, le=20)] | None = None
    """Synthetic chunks per chunk that is fitted on, of the sample's own words in new combinations, each run through the full model as well.
    They make a small sample worth a larger one, and take their share of the time. Default: 3, and for fewer than 7,500 chunks as many as
    make 30,000 with them, at most 9."""
    strengths: Annotated[tuple[Annotated[float, Field(ge=1e-9)], ...], OneOrMore] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Ridge strengths to choose from."""
    seed: int = 0
    """Seed of the sample."""

    @model_validator(mode="before")
    @classmethod
    def _no_distillation(cls, values: Any) -> Any:
        removed = [name for name in ("method", "distill") if isinstance(values, dict) and name in values]
        if removed:
            raise ValueError(f"{' and '.join(removed)}: distillation was removed, a calibration always fits ridge maps; delete the setting")
        return values


class ArtifactConfig(Section):
    """Destination of the calibration."""

    uri: NonEmpty
    """A new folder: a local path, s3://, gs:// or az://."""


class CalibrateConfig(Section):
    """One calibration: maps and int8 ranges of a model, fitted on a sample of a source."""

    source: SourceConfig
    chunking: ChunkingConfig = ChunkingConfig()
    embedding: EmbeddingConfig
    compute: ComputeConfig = ComputeConfig()
    calibrate: CalibrateSettings = CalibrateSettings()
    output: ArtifactConfig

    @model_validator(mode="after")
    def _the_whole_model(self) -> "CalibrateConfig":
        if self.embedding.is_api:
            raise ValueError(f"embedding.model={self.embedding.model!r}: the layers of an API cannot be read; choose a local model")
        if self.chunking.tokenizer is not None:
            raise ValueError(f"chunking.tokenizer={self.chunking.tokenizer!r}: is for models named {API}NAME; leave it out")
        given = [name for name in ("depth", "dim", "calibration", "exit") if getattr(self.embedding, name) is not None]
        given += [name for name in ("quantization", "rotate", "float8") if getattr(self.embedding, name) not in ("none", False)]
        if given:
            raise ValueError(f"embedding.{given[0]}: a calibration is fitted on the whole model; set this in the embed run instead")
        if self.chunking.late:
            raise ValueError("chunking.late=true: a calibration is fitted on chunks embedded alone; leave it out")
        if self.compute.backend in ("openvino", "compiled"):
            raise ValueError(f"compute.backend={self.compute.backend}: a calibration runs on torch; set this in the embed run instead")
        return self
