"""The spec is the space: everything that can change a vector, frozen, with one fingerprint."""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Pooling = Literal["mean", "cls", "last", "unknown"]
"""unknown: that of a model behind an API, which does not say."""
FinalNorm = Literal["apply", "skip", "none"]
Quantization = Literal["none", "int8", "binary"]
Exit = Literal["native", "calibrated"]

API = "openai:"
"""Prefix of a model behind an OpenAI-compatible /v1/embeddings."""

RECIPE_VERSION = 1
"""Raised when this code changes the vector of a text under an unchanged spec, so that old and new never meet."""

_LABELS = frozenset({"model", "revision", "query_prompt", "query_depth", "tokenizer"})
"""Fields that name or accompany the space but do not move a document's vector: a model moved to another folder is the
same model (`model_checksum` says so), and the query's prompt and depth are only used by searches."""

_LATER: dict[str, Any] = {
    "quantization": "none",
    "exit": "native",
    "calibration": None,
    "rotation": None,
    "base_url": None,
    "float8": False,
}
"""Fields that came later, by what all specs meant before: at that value they leave the fingerprint as it was."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(*values: Any, num_bytes: int = 16) -> str:
    """Hash JSON-encodable values to hex; equal values give equal digests on every machine and Python version."""
    return hashlib.blake2b(_CANONICAL.encode(values).encode(), digest_size=num_bytes).hexdigest()


class EmbeddingSpec(BaseModel):
    """What turns a text into vectors, resolved to the last setting; two vectors may meet only if `space_id` is equal."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    """Hub name, folder, `package:NAME` or `openai:NAME`, as the user gave it."""
    revision: str | None
    """Hub commit, if the model came from a hub."""
    model_checksum: str
    """sha256 over the files that decide a vector: weights, tokenizer, configs and the modules after pooling. Behind an API,
    whose files nobody sees, its name, and what counts the tokens."""
    depth: int
    """Transformer layers run, counted from 1; 0 behind an API."""
    final_norm: FinalNorm
    """Whether the family's norm after the last layer is applied to the state at `depth`; `none` where it has none."""
    pooling: Pooling
    layer_norm: bool
    """LayerNorm without weights over the full width, before the cut (nomic-embed-text-v1.5)."""
    prompt: str
    """Put before every chunk, its tokens pooled like any others."""
    query_prompt: str
    max_tokens: int
    """Tokens per chunk, prompt and special tokens included."""
    chunking: bool
    """False: one chunk a document, cut at `max_tokens`."""
    overlap_tokens: int
    dim: int
    """Leading components kept."""
    normalize: bool
    """L2 in float32 after the cut."""
    exit: Exit = "native"
    """calibrated: a map fitted beforehand takes the states of layers 0 to `depth` into the full model's space."""
    query_depth: int | None = None
    """Layers that queries run where documents land in another depth's space; None: `depth`."""
    quantization: Quantization = "none"
    """How a vector is stored: as float32, one byte or one bit a component."""
    calibration: str | None = None
    """Fingerprint of the artifact that holds the exit's map and the ranges of int8, if one is used."""
    rotation: str | None = None
    """Digest of the orthogonal matrix that vectors of full width are turned by before the cut, if they are."""
    float8: bool = False
    """Whether the layers' linear modules multiply in float8, which moves a vector many times as far as bfloat16 does."""
    base_url: str | None = None
    """Of an API: the same name on another server may be another model."""
    tokenizer: str | None = None
    """Model whose tokenizer counts an API's tokens; None: the model's own, or of an API bytes."""
    recipe_version: int = RECIPE_VERSION

    @property
    def is_api(self) -> bool:
        """Whether vectors come over the network."""
        return self.model.startswith(API)

    @property
    def space_id(self) -> str:
        """Name the space: a digest of every field that can move a vector."""
        return digest(self._moving())

    def for_queries(self) -> "EmbeddingSpec":
        """What makes query vectors that may meet these: its own prompt and depth, one chunk, turned alike, unquantized, exact."""
        asked = {"prompt": self.query_prompt, "chunking": False, "overlap_tokens": 0, "depth": self.query_depth or self.depth}
        plain = {"query_depth": None, "quantization": "none", "exit": "native", "calibration": None, "float8": False}
        return self.model_copy(update=asked | plain)

    def differences(self, other: "EmbeddingSpec") -> list[str]:
        """Say field by field how `other` differs in what moves a vector, as `name: mine → theirs`."""
        mine, theirs = _LATER | self._moving(), _LATER | other._moving()
        return [f"{name}: {mine[name]!r} → {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]

    def _moving(self) -> dict[str, Any]:
        values = self.model_dump(exclude=set(_LABELS))
        return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}
