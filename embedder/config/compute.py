"""Settings of the hardware that the work runs on; none of them changes the space of the vectors."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from embedder.config.section import Section

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


Layout = Literal["auto", "padded", "packed"]


Backend = Literal["auto", "torch", "compiled", "fused", "openvino"]


CPU_TOKENS = 1_024
"""Token budget on a CPU, where each core has a batch of its own: bfloat16 on 2 cores runs 1.2 x faster than at 4,096 with torch, and 1.06 x
than at 2,048 with OpenVINO; 512 gains nothing more."""


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
