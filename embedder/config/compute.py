"""Settings of the hardware; none of them changes the space of the vectors."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from embedder.config.section import Positive, Section

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Layout = Literal["auto", "padded", "packed"]
Backend = Literal["auto", "torch", "compiled", "fused", "openvino"]

CPU_TOKENS = 1_024
"""Token budget on a CPU, where each core has its own batch. In bfloat16 on 2 cores this is 1.2 x faster than 4,096 with torch, and 1.06 x
faster than 2,048 with OpenVINO; 512 gains nothing more."""


class ComputeConfig(Section):
    """The hardware and its use. Nothing here changes the space of the vectors."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if the cluster has GPUs, else cpu."""
    dtype: Dtype = "auto"
    """auto: bfloat16 if the hardware has it and the family allows it, else float32."""
    token_budget: Positive | None = None
    """Tokens per forward pass, padding included; default: 1024 on a CPU; on a GPU what its free memory holds, at most 65536."""
    layout: Layout = "auto"
    """packed: sequences end to end, without padding; padded: side by side; auto: packed on cuda in half precision, except for MPNet."""
    backend: Backend = "auto"
    """Runs the layers: torch, compiled, fused (cuda, most families), or openvino (cpu, extra). auto on cuda: the faster of torch and fused,
    measured on the first large unit together with the token budget; on a CPU: openvino if installed. Each must agree with torch."""
    actors: tuple[Positive, Positive] | None = None
    """Minimum and maximum number of encoder actors; default: one per GPU, or one per CPU node."""
    num_gpus: Annotated[float, Field(gt=0)] | None = None
    """GPUs per actor; fractions share one. Default: 1 on cuda."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs per actor, and its threads on device cpu; default: the node's, less those that reading needs."""
    max_attempts: Positive = 3
    """Crashes of the encoder on one unit, over all runs, before the unit is split up and its poison documents are quarantined; or of its
    reader, within one run, before its shard is reported."""
    tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    """Rate of one encoder actor, for the price of a dry run; default: that of the table's last run."""
    price_per_device_hour_usd: Annotated[float, Field(ge=0)] | None = None
    """Price per hour of one encoder actor's hardware; default: no cost is shown."""
    price_per_million_tokens_usd: Annotated[float, Field(ge=0)] | None = None
    """For openai:NAME: price of a million tokens; default: no cost is shown."""

    @field_validator("actors", mode="before")
    @classmethod
    def _one_number_is_a_fixed_size(cls, value: Any) -> Any:
        return [value, value] if isinstance(value, int | str) else value

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
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
