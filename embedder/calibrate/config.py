"""Settings of a calibration, and of the artifact that it writes."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedder.config.compute import ComputeConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.section import NonEmpty, OneOrMore, Positive, Section
from embedder.config.source import SourceConfig

LEAST_STEP = 4
"""Chunks that states are standardised over in one step of training."""


class DistillSettings(Section):
    """How layers are trained; only of use with calibrate.method distill."""

    epochs: Positive = 5
    """Times that the sample is gone through; the best by the chunks held out is kept."""
    batch_chunks: Annotated[int, Field(ge=2)] = 64
    """Chunks of a step; its memory grows with them."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Highest, of AdamW."""


class AttentionSettings(Section):
    """How the queries of the two learned means are trained, which maps read of every layer."""

    chunks: Annotated[int, Field(ge=0)] = 4096
    """To train on, drawn from those that maps are fitted on; 0: not at all, and the means are those by rarity and by nearness to the
    beginning. Memory holds a table of every two."""
    epochs: Positive = 3
    """Times that these are gone through."""
    batch_chunks: Annotated[int, Field(ge=LEAST_STEP)] = 32
    """Chunks of a step; memory holds the states of all their tokens at every layer read."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    """Highest, of Adam, for the queries."""

    @model_validator(mode="after")
    def _chunks_for_a_step(self) -> "AttentionSettings":
        if 0 < self.chunks < LEAST_STEP:
            raise ValueError(f"chunks={self.chunks}: too few for one step; choose 0, which trains nothing, or {LEAST_STEP} and more")
        return self


class CalibrateSettings(Section):
    """What is fitted, on how large a sample."""

    method: Literal["ridge", "distill"] = "ridge"
    """ridge: a map behind the model's own layers, solved in seconds; distill: from there the kept layers are trained as well, for each of
    `depths`, which takes several passes over the sample."""
    distill: DistillSettings = DistillSettings()
    attention: AttentionSettings = AttentionSettings()
    depths: Annotated[tuple[Positive, ...] | None, OneOrMore] = None
    """Depths to fit exits and ranges for; left out: all."""
    dims: Annotated[tuple[Positive, ...] | None, OneOrMore] = None
    """Dims to fit the ranges of int8 for; left out: the full width and the powers of two from 32 up."""
    num_documents: Annotated[int, Field(ge=100)] = 20_000
    """Documents drawn from the source at random; the more the better, up to some ten for each feature of a map."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of these, but at least 30, that nothing is fitted on: they choose the strength and say how good the maps are."""
    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], OneOrMore] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Ridge strengths to choose from."""
    seed: int = 0
    """Of the sample."""


class ArtifactConfig(Section):
    """Where the calibration goes."""

    uri: NonEmpty
    """A new folder: a local path, s3://, gs:// or az://."""


class CalibrateConfig(Section):
    """One calibration: maps and ranges of a model, fitted on a sample of a source."""

    source: SourceConfig
    chunking: ChunkingConfig = ChunkingConfig()
    embedding: EmbeddingConfig
    compute: ComputeConfig = ComputeConfig()
    calibrate: CalibrateSettings = CalibrateSettings()
    output: ArtifactConfig

    @model_validator(mode="after")
    def _the_whole_model(self) -> "CalibrateConfig":
        if self.embedding.is_api:
            raise ValueError(f"embedding.model={self.embedding.model!r}: an API has no layers to leave; calibrate a model that is here")
        given = [name for name in ("depth", "dim", "calibration", "exit") if getattr(self.embedding, name) is not None]
        given += [name for name in ("quantization", "rotate", "float8") if getattr(self.embedding, name) not in ("none", False)]
        if given:
            raise ValueError(f"embedding.{given[0]}: a calibration is of the whole model; leave it out, and set it in the embed run")
        if self.compute.backend in ("openvino", "compiled"):
            raise ValueError(
                f"compute.backend={self.compute.backend}: a sample is tapped by torch; leave it out, and set it in the embed run"
            )
        if self.calibrate.method == "distill" and not self.calibrate.depths:
            raise ValueError("calibrate.depths: distill trains each depth for itself; name those that are wanted")
        if self.calibrate.method == "distill" and not self.embedding.normalize:
            raise ValueError("embedding.normalize=false: distill compares cosines; leave it out")
        if self.calibrate.method == "ridge" and self.calibrate.distill != DistillSettings():
            raise ValueError("calibrate.distill has no effect with calibrate.method ridge; set it to distill")
        return self
