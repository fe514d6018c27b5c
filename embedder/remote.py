"""Which settings have an effect on a model behind an API, on one that runs here, or beside float8; the others are refused by name."""

from typing import TYPE_CHECKING

from embedder.core.spec import API

if TYPE_CHECKING:
    from embedder.config import ComputeConfig, EmbedConfig, EmbeddingConfig

_OF_LAYERS = ("revision", "depth", "final_norm", "calibration", "rotate", "float8", "exit", "pooling", "layer_norm")
"""What only somebody who holds the weights can choose."""
_OF_DEVICES = {"device": ("auto", "cpu"), "dtype": ("auto",), "layout": ("auto",), "backend": ("auto", "torch")}
"""What an API leaves nothing to choose of, with the values that say nothing."""
_OF_ENCODERS = ("token_budget", "num_gpus", "tokens_per_second", "price_per_device_hour_usd")


def refuse_local_settings(embedding: "EmbeddingConfig") -> None:
    """Refuse what cannot be asked of an API, or a server's address for a model that runs here."""
    if not embedding.is_api:
        if embedding.base_url is not None:
            raise ValueError(f"base_url={embedding.base_url!r}: is for models named {API}NAME, not {embedding.model!r}; leave it out")
        return
    if not embedding.model.removeprefix(API).strip():
        raise ValueError(f"model={embedding.model!r}: has no name; write {API}text-embedding-3-small, say")
    defaults = {name: type(embedding).model_fields[name].default for name in _OF_LAYERS}
    given = [f"{name}={getattr(embedding, name)!r}" for name, default in defaults.items() if getattr(embedding, name) != default]
    if given:
        raise ValueError(f"{', '.join(given)}: {embedding.model!r} runs behind an API, which has no setting for it; leave it out")
    if embedding.quantization == "int8":
        raise ValueError(f"quantization='int8': its ranges come from jobs.calibrate, which needs the weights of {embedding.model!r}; "
                         "choose none or binary")  # fmt: skip


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
