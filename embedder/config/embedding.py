"""Settings of the model, and of the chunks that it is given."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedder.config.section import Address, NonEmpty, Section
from embedder.core.spec import API, Exit, Quantization


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


_OF_LAYERS = ("revision", "depth", "final_norm", "calibration", "rotate", "float8", "exit", "pooling", "layer_norm")
"""What only somebody who holds the weights can choose."""


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
