"""The spec is the space: everything that can change a vector, frozen, with one fingerprint."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_POOLING = "(mean|cls|last|max|weightedmean|mean_sqrt_len)"
Pooling = Annotated[str, Field(pattern=rf"^({_POOLING}(\+{_POOLING})*|unknown)$")]
"""Names joined by `+` are several, side by side; unknown: a model behind an API."""
Route = Literal["document", "query"]
"""Side whose modules a Router takes."""
FinalNorm = Literal["apply", "skip", "none"]
Quantization = Literal["none", "int8", "binary"]
Exit = Literal["native", "calibrated"]
Boundary = Literal["heading", "paragraph", "sentence", "word"]
TextFormat = Literal["auto", "plain", "markdown", "html", "code"]
AUTO: TextFormat = "auto"

API = "openai:"
"""Prefix of a model behind an OpenAI-compatible /v1/embeddings."""

RECIPE_VERSION = 1
"""Incremented when this code changes the vector of a text under an unchanged spec."""

_LABELS = frozenset({"model", "revision", "query_prompt", "query_depth", "query_adapter", "queries", "tokenizer"})
"""Fields that do not change a document's vector: `model_checksum` identifies the model wherever it lies, and only searches use the
query's prompt, depth, adapter and route."""

_LATER: dict[str, Any] = {
    "quantization": "none", "exit": "native", "calibration": None, "rotation": None, "base_url": None, "float8": False,
    "adapter": None, "include_prompt": True, "route": "document",
    "template": None, "context_tokens": None, "boundaries": ("word",), "text_format": None, "min_tokens": 0,
    "late_tokens": None,
}  # fmt: skip
"""Fields added after version 1, with the value that earlier specs imply: at that value they do not change the fingerprint."""

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical(value: Any) -> str:
    """Return the JSON text that is hashed for a value."""
    return _CANONICAL.encode(value)


def digest(*values: Any, num_bytes: int = 16) -> str:
    """Return a hex hash of JSON-encodable values, equal on every machine and Python version."""
    return hashlib.blake2b(canonical(values).encode(), digest_size=num_bytes).hexdigest()


class QueryRoute(BaseModel):
    """Settings of a Router's modules for queries, each as in the spec, where they take the place of those for documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: int
    final_norm: FinalNorm
    pooling: Pooling
    layer_norm: bool
    include_prompt: bool
    max_tokens: int


class EmbeddingSpec(BaseModel):
    """All settings that turn a text into vectors, resolved; two vectors are comparable only if `space_id` is equal."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    """Hub name, folder, `package:NAME` or `openai:NAME`, as the user gave it."""
    revision: str | None
    """Hub commit, if the model came from a hub."""
    model_checksum: str
    """sha256 over the files that decide a vector: weights, tokenizer, configs and the modules after pooling. For an API:
    over its name and token counter."""
    depth: int
    """Transformer layers run, counted from 1; 0 behind an API."""
    final_norm: FinalNorm
    """Whether the family's norm after the last layer is applied to the state at `depth`; `none` where it has none."""
    pooling: Pooling
    layer_norm: bool
    """LayerNorm without weights over the full width, before truncation (nomic-embed-text-v1.5)."""
    prompt: str
    """Prepended to every chunk."""
    query_prompt: str
    max_tokens: int
    """Tokens per chunk, prompt and special tokens included."""
    chunking: bool
    """False: one chunk a document, truncated at `max_tokens`."""
    overlap_tokens: int
    template: str | None = None
    """Text around every chunk, the prompt included; None: the prompt, then the chunk."""
    context_tokens: int | None = None
    """Most tokens of the template's text in a chunk."""
    boundaries: tuple[Boundary, ...] = ("word",)
    """Places at which a window may end, the preferred first."""
    text_format: TextFormat | None = None
    """Kind of text, by which headings, paragraphs and sentences are found; None: nothing depends on it."""
    min_tokens: int = 0
    """Fewest tokens of a document's last window."""
    late_tokens: int | None = None
    """Most tokens of a pass over several chunks of a document, which are pooled from its states; None: a pass is one chunk."""
    dim: int
    """Leading components kept."""
    normalize: bool
    """L2 in float32 after truncation."""
    exit: Exit = "native"
    """calibrated: a fitted map takes the states of layers 0 to `depth` into the full model's space."""
    query_depth: int | None = None
    """Layers run for queries, if documents land in another depth's space; None: `depth`."""
    quantization: Quantization = "none"
    """How a vector is stored: float32, one byte or one bit a component."""
    calibration: str | None = None
    """Fingerprint of the artifact with the exit map and the int8 ranges."""
    rotation: str | None = None
    """Digest of the orthogonal matrix that rotates vectors before truncation."""
    float8: bool = False
    """Whether the layers' linear modules multiply in float8, which changes a vector many times as much as bfloat16."""
    include_prompt: bool = True
    """Whether the prompt's tokens are pooled like any others; False has an effect only with a prompt."""
    adapter: str | None = None
    """Low-rank update of the weights that is merged for documents, of those that the model's files name for tasks."""
    query_adapter: str | None = None
    """Likewise for queries."""
    route: Route = "document"
    """Modules that a Router takes."""
    queries: QueryRoute | None = None
    """Settings of a Router's route for queries; None: documents and queries take the same modules."""
    base_url: str | None = None
    """The API's address: the same name on another server may be another model."""
    tokenizer: str | None = None
    """Model whose tokenizer counts an API's tokens; None: the model's own, or bytes for an API."""
    recipe_version: int = RECIPE_VERSION

    @property
    def is_api(self) -> bool:
        """Whether vectors come over the network."""
        return self.model.startswith(API)

    @property
    def has_context(self) -> bool:
        """Whether a document's chunks depend on more than its text, which its content hash then covers too."""
        return self.template is not None or self.text_format == AUTO

    @property
    def space_id(self) -> str:
        """Digest of every field that can change a vector."""
        return digest(self._vector_fields())

    def for_queries(self) -> "EmbeddingSpec":
        """Return the spec of matching query vectors: the query's prompt, depth, adapter, route, one chunk, same rotation, not quantized."""
        own = {} if self.queries is None else {"route": "query", **self.queries.model_dump()}
        return self.for_passages().model_copy(update={"prompt": self.query_prompt, "adapter": self.query_adapter, "queries": None, **own})

    def for_passages(self) -> "EmbeddingSpec":
        """Return the spec of a document as one chunk at the query's depth: not quantized, in the space of queries."""
        asked: dict[str, Any] = {"chunking": False, "overlap_tokens": 0, "depth": self.query_depth or self.depth}
        asked |= {name: _LATER[name] for name in ("template", "context_tokens", "boundaries", "text_format", "min_tokens", "late_tokens")}
        plain = {"query_depth": None, "quantization": "none", "exit": "native", "calibration": None, "float8": False}
        return self.model_copy(update=asked | plain)

    def differences(self, other: "EmbeddingSpec") -> list[str]:
        """Return the fields that change a vector and differ, each as `name: mine → theirs`."""
        mine, theirs = _LATER | self._vector_fields(), _LATER | other._vector_fields()
        return [f"{name}: {mine[name]!r} → {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]

    def _vector_fields(self) -> dict[str, Any]:
        values = self.model_dump(exclude=set(_LABELS))
        return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}
