"""Settings of the model and of its chunks."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from embedder.config.section import Address, NonEmpty, OneOrMore, Positive, Section
from embedder.core.spec import API, AUTO, Boundary, Exit, Quantization, TextFormat
from embedder.core.template import HEADINGS, parse_template

_OF_WEIGHTS = ("revision", "depth", "final_norm", "calibration", "rotate", "float8", "exit", "pooling", "layer_norm")
"""Settings that need the model's weights."""


_BOUNDARIES: tuple[Boundary, ...] = ("heading", "paragraph", "sentence", "word")


class ChunkingConfig(Section):
    """How a document becomes sequences of at most max_tokens."""

    enabled: bool = True
    """false: one chunk a document, truncated at max_tokens and counted as truncated."""
    max_tokens: Annotated[int, Field(ge=4)] | None = None
    """Tokens per chunk, prompt and special tokens included; default: the model's."""
    overlap_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens that a chunk repeats from the end of the one before."""
    template: NonEmpty | None = None
    """Text around every chunk, such as "{title|none}\\n{headings}\\n{chunk}": columns, their defaults after |; default: the prompt."""
    context_tokens: Positive | None = None
    """Most tokens of the template's text in a chunk, its longest value being cut first; default: a third of max_tokens."""
    boundaries: Annotated[tuple[Boundary, ...], OneOrMore] = ("word",)
    """Where a chunk may end, the preferred first: of heading, paragraph, sentence, word. All but word count within its last third."""
    text_format: TextFormat = AUTO
    """Marks of headings, paragraphs and sentences: plain, markdown, html (read without tags), code; auto: by the shard's suffix, as .md."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Fewest tokens of a document's last chunk, beside its context; a shorter one takes some from the chunk before."""
    late: bool = False
    """Late chunking: encode as much of a document as the model takes in one pass, and pool each chunk's vector from its token states."""
    tokenizer: NonEmpty | None = None
    """For openai:NAME: hub name, folder or package:NAME of the tokenizer that counts; default: a token is taken for 3 bytes of UTF-8."""

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> Self:
        if self.max_tokens is not None and self.overlap_tokens >= self.max_tokens:
            raise ValueError(f"overlap_tokens={self.overlap_tokens}: must be smaller than max_tokens={self.max_tokens}")
        return self

    @field_validator("template")
    @classmethod
    def _well_formed(cls, value: str | None) -> str | None:
        if value is not None:
            parse_template(value)
        return value

    @field_validator("boundaries")
    @classmethod
    def _from_coarse_to_fine(cls, value: tuple[Boundary, ...]) -> tuple[Boundary, ...]:
        if value != tuple(each for each in _BOUNDARIES if each in value) or value[-1:] != ("word",):
            raise ValueError(f"name some of {', '.join(_BOUNDARIES)}, each once, in this order, word last")
        return value

    @property
    def has_headings(self) -> bool:
        """Whether the template asks for a chunk's headings."""
        return self.template is not None and HEADINGS in parse_template(self.template).names

    @property
    def reads_format(self) -> bool:
        """Whether chunks depend on the format of the text."""
        return self.has_headings or self.boundaries != ("word",) or self.text_format == "html"

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> Self:
        problem = ""
        if self.template is None and self.context_tokens is not None:
            problem = f"context_tokens={self.context_tokens}: has no effect without a template; set one, or leave it out"
        elif not self.enabled and (self.boundaries != ("word",) or self.min_tokens):
            given = f"min_tokens={self.min_tokens}" if self.min_tokens else f"boundaries={list(self.boundaries)}"
            problem = f"{given}: has no effect with enabled=false; leave one of the two out"
        elif not self.enabled and self.has_headings:
            problem = "template: with enabled=false all chunks start their document, before any {headings}; leave one of the two out"
        elif self.text_format == "plain" and (self.has_headings or "heading" in self.boundaries):
            problem = "text_format='plain': has no headings, which boundaries or the template ask for; leave one of the two out"
        elif self.text_format != AUTO and not self.reads_format:
            problem = f"text_format={self.text_format!r}: has no effect without boundaries or {{headings}} in the template; leave it out"
        elif self.late and not self.enabled:
            problem = "late=true: has no effect with enabled=false; leave one of the two out"
        elif self.late and self.has_headings:
            problem = (
                "late=true: a pass holds the headings' own text, and has one {headings} for all of its chunks; leave it out of template"
            )
        if problem:
            raise ValueError(problem)
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
    """mean, cls, last, max, weightedmean or mean_sqrt_len; default: the model's, which may be several side by side."""
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
