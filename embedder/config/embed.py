"""The settings of an embed run: one YAML file is one run."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from embedder.config.compute import ComputeConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.output import OutputConfig
from embedder.config.section import NonEmpty, Section
from embedder.config.source import SourceConfig
from embedder.core.spec import API

_NEUTRAL_FOR_API: dict[str, tuple[Any, ...]] = {
    "device": ("auto", "cpu"),
    "dtype": ("auto",),
    "layout": ("auto",),
    "backend": ("auto", "torch"),
    **dict.fromkeys(("token_budget", "num_gpus", "tokens_per_second", "price_per_device_hour_usd"), (None,)),
}
"""Compute settings without effect on an API, with the values that are accepted."""


class GateConfig(Section):
    """Refuse runs whose quality was not measured to be good enough: by a sweep before, or on a sample behind a calibrated exit."""

    report: NonEmpty | None = None
    """report.json of a sweep of this model and source."""
    min_quality: Annotated[float, Field(gt=0, le=1)] = 0.97
    """Least share of the full model's quality that the setting kept in the report, at the lower end of its 95% interval."""
    rescored: bool = False
    """For binary: judge searches that rescore candidates with the float query, as jobs.search does and stores do not."""
    min_fidelity: Annotated[float, Field(gt=0, le=1)] | None = None
    """For a calibrated exit: least mean cosine to the full model of a sample of 64 chunks that the run embeds, below which it publishes
    nothing."""

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> Self:
        if self.report is None:
            if self.min_fidelity is None:
                raise ValueError("neither report nor min_fidelity is set; set one of them, or leave the gate out")
            if self.rescored or self.min_quality != type(self).model_fields["min_quality"].default:
                raise ValueError("min_quality and rescored are about a report; set report, or leave them out")
        return self


class EmbedConfig(Section):
    """One embed run: make the table at output.uri match the documents at source.uri."""

    source: SourceConfig
    chunking: ChunkingConfig = ChunkingConfig()
    embedding: EmbeddingConfig
    compute: ComputeConfig = ComputeConfig()
    output: OutputConfig
    gate: GateConfig | None = None
    """Refuse a setting or a run that was not measured to be good enough; default: any runs."""

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> Self:
        compute, embedding = self.compute, self.embedding
        price, tokenizer = compute.price_per_million_tokens_usd, self.chunking.tokenizer
        if embedding.is_api:
            values = {name: getattr(compute, name) for name in _NEUTRAL_FOR_API}
            given = [f"compute.{name}={value!r}" for name, value in values.items() if value not in _NEUTRAL_FOR_API[name]]
            if given:
                raise ValueError(f"{', '.join(given)}: has no effect on {embedding.model!r}, which runs behind an API; leave it out")
            if self.chunking.late:
                raise ValueError(f"chunking.late=true: {embedding.model!r} runs behind an API, which gives no token states; leave it out")
        elif price is not None:
            raise ValueError(f"compute.price_per_million_tokens_usd={price}: is for models named {API}NAME; set price_per_device_hour_usd")
        elif tokenizer is not None:
            raise ValueError(f"chunking.tokenizer={tokenizer!r}: is for models named {API}NAME, this one has its own; leave it out")
        elif self.chunking.late and compute.backend == "openvino":
            raise ValueError("compute.backend=openvino: does not pool by chunks; leave it out, or chunking.late")
        elif embedding.float8 and compute.backend == "openvino":
            raise ValueError("compute.backend=openvino: has no products in float8; leave it out, or embedding.float8")
        elif embedding.float8 and compute.dtype not in ("auto", "bfloat16"):
            raise ValueError(f"compute.dtype={compute.dtype}: around embedding.float8 all is bfloat16; leave one of the two out")
        return self
