"""Settings of the model and of its chunks."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from embedder.config.section import Address, NonEmpty, Positive, Section
from embedder.core.spec import API, Exit, Quantization

_OF_WEIGHTS = ("revision", "depth", "final_norm", "calibration", "rotate", "float8", "exit", "pooling", "layer_norm")
"""Settings that need the model's weights."""


class ChunkingConfig(Section):
    """How a document becomes sequences of at most max_tokens."""

    enabled: bool = True
    """false: one chunk a document, truncated at max_tokens and counted as truncated."""
    max_tokens: Annotated[int, Field(ge=4)] | None = None
    """Tokens per chunk, prompt and special tokens included; default: the model's."""
    overlap_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens that a chunk repeats from the end of the one before."""
    tokenizer: NonEmpty | None = None
    """For openai:NAME: hub name, folder or package:NAME of the tokenizer that counts; default: a token is taken for 3 bytes of UTF-8."""

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> Self:
        if self.max_tokens is not None and self.overlap_tokens >= self.max_tokens:
            raise ValueError(f"overlap_tokens={self.overlap_tokens}: must be smaller than max_tokens={self.max_tokens}")
        return self


class EmbeddingConfig(Section):
    """The model, and how much of it is run and kept. Defaults come from the model's own files."""

    model: NonEmpty
    """Hub name, folder, package:NAME (a Python package with a MODEL_DIR), or openai:NAME behind an OpenAI-compatible /v1/embeddings."""
    base_url: Address | None = None
    """For openai:NAME: root of the API, with /v1, part of the space; default: OPENAI_BASE_URL, or OpenAI. The key is OPENAI_API_KEY."""
    revision: NonEmpty | None = None
    """Hub branch, tag or commit; resolved to the commit and recorded."""
    depth: Positive | None = None
    """Transformer layers run, counted from 1; default: all."""
    final_norm: Literal["apply", "skip"] | None = None
    """For families with a norm after the last layer: apply it to the state at depth, or use the raw state; default: apply."""
    dim: Positive | None = None
    """Leading components kept; default: the full width."""
    calibration: NonEmpty | None = None
    """Folder of an artifact that jobs.calibrate made for this model: maps for shallow depths, and the int8 ranges."""
    rotate: bool = False
    """Rotate vectors onto the principal axes in calibration before truncation: a small dim then keeps more of them."""
    float8: bool = False
    """Multiply in float8 in the layers' linear modules (CUDA 8.9 or newer; emulated on a CPU): a space of its own, queries stay exact."""
    exit: Exit | None = None
    """calibrated: documents at depth land in the full model's space, where queries run; default: calibrated if calibration has a map."""
    quantization: Quantization = "none"
    """How vectors are stored: none is float32, int8 a byte a component (needs calibration), binary a bit."""
    pooling: Literal["mean", "cls", "last", "max", "weightedmean", "mean_sqrt_len"] | None = None
    """mean, cls or last; default: the model's."""
    layer_norm: bool | None = None
    """LayerNorm without weights over the full width before truncation; default: true for nomic-embed-text-v1.5, else false."""
    prompt: str | None = None
    """Prepended to every chunk; default: the model's document prompt."""
    query_prompt: str | None = None
    """Prepended to every search query; default: the model's query prompt."""
    normalize: bool | None = None
    """L2 norm 1 after truncation, in float32; default: true, unless the model is made for dot products of unnormalized vectors."""

    @property
    def is_api(self) -> bool:
        """Whether vectors come over the network."""
        return self.model.startswith(API)

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> Self:
        model = self.model
        if not self.is_api:
            if self.base_url is not None:
                raise ValueError(f"base_url={self.base_url!r}: is for models named {API}NAME, not {model!r}; leave it out")
            return self
        if not model.removeprefix(API).strip():
            raise ValueError(f"model={model!r}: has no name; write {API}text-embedding-3-small, say")
        values = {name: getattr(self, name) for name in _OF_WEIGHTS}
        given = [f"{name}={value!r}" for name, value in values.items() if value != type(self).model_fields[name].default]
        if given:
            raise ValueError(f"{', '.join(given)}: {model!r} runs behind an API, which has no setting for it; leave it out")
        if self.quantization == "int8":
            raise ValueError(f"quantization='int8': its ranges need the weights of {model!r}; choose none or binary")
        return self
