"""The spec is the space: everything that can change a vector, frozen, with one fingerprint."""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Pooling = Literal["mean", "cls", "last"]
FinalNorm = Literal["apply", "skip", "none"]

RECIPE_VERSION = 1
"""Raised when this code changes the vector of a text under an unchanged spec, so that old and new never meet."""

_LABELS = frozenset({"model", "revision", "query_prompt"})
"""Fields that name or accompany the space but do not move a document's vector: a model moved to another folder is the
same model (`model_checksum` says so), and the query prompt is only used by searches."""


def digest(*values: Any, num_bytes: int = 16) -> str:
    """Hash JSON-encodable values to hex; equal values give equal digests on every machine and Python version."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=num_bytes).hexdigest()


class EmbeddingSpec(BaseModel):
    """What turns a text into vectors, resolved to the last setting; two vectors may meet only if `space_id` is equal."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    """Hub name, folder or `package:NAME`, as the user gave it."""
    revision: str | None
    """Hub commit, if the model came from a hub."""
    model_checksum: str
    """sha256 over the files that decide a vector: weights, tokenizer, configs and the modules after pooling."""
    depth: int
    """Transformer layers run, counted from 1."""
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
    recipe_version: int = RECIPE_VERSION

    @property
    def space_id(self) -> str:
        """Name the space: a digest of every field that can move a vector."""
        return digest(self.model_dump(exclude=set(_LABELS)))

    def differences(self, other: "EmbeddingSpec") -> list[str]:
        """Say field by field how `other` differs in what moves a vector, as `name: mine → theirs`."""
        mine, theirs = self.model_dump(exclude=set(_LABELS)), other.model_dump(exclude=set(_LABELS))
        return [f"{name}: {mine[name]!r} → {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]
