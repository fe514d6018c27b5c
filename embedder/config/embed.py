"""The settings of an embed run: one YAML file is one run, every section frozen, every key known."""

from typing import Annotated

from pydantic import Field, model_validator

from embedder.config.compute import ComputeConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.output import OutputConfig
from embedder.config.section import NonEmpty, Section
from embedder.config.source import SourceConfig
from embedder.core.spec import API


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


_OF_DEVICES = {"device": ("auto", "cpu"), "dtype": ("auto",), "layout": ("auto",), "backend": ("auto", "torch")}
"""What an API leaves nothing to choose of, with the values that say nothing."""


_OF_ENCODERS = ("token_budget", "num_gpus", "tokens_per_second", "price_per_device_hour_usd")


def refuse_run_settings(config: "EmbedConfig") -> None:
    """Refuse what has no effect on the model of a run."""
    price, tokenizer = config.compute.price_per_million_tokens_usd, config.chunking.tokenizer
    if not config.embedding.is_api:
        if price is not None:
            raise ValueError(f"compute.price_per_million_tokens_usd={price}: is for models named {API}NAME; set price_per_device_hour_usd")
        if tokenizer is not None:
            raise ValueError(f"chunking.tokenizer={tokenizer!r}: is for models named {API}NAME, this one has its own; leave it out")
        if config.embedding.float8:
            refuse_beside_float8(config.compute)
        return
    given = _given_of_devices(config.compute)
    if given:
        raise ValueError(f"{', '.join(given)}: has no effect on {config.embedding.model!r}, which runs behind an API; leave it out")


def refuse_beside_float8(compute: "ComputeConfig") -> None:
    """Refuse what cannot compute around float8."""
    if compute.backend == "openvino":
        raise ValueError("compute.backend=openvino: has no products in float8; leave it out, or embedding.float8")
    if compute.dtype not in ("auto", "bfloat16"):
        raise ValueError(f"compute.dtype={compute.dtype}: around embedding.float8 all is bfloat16; leave one of the two out")


def _given_of_devices(compute: "ComputeConfig") -> list[str]:
    given = [f"compute.{name}={getattr(compute, name)!r}" for name, free in _OF_DEVICES.items() if getattr(compute, name) not in free]
    return given + [f"compute.{name}={getattr(compute, name)!r}" for name in _OF_ENCODERS if getattr(compute, name) is not None]
