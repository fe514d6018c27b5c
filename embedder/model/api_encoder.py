"""A model behind an OpenAI-compatible /v1/embeddings: texts → vectors over the network. Needs the extra openai, but no torch.

A refused request (a text too long, too many texts) is split, a busy server is retried, and any other failure ends the run.
N = texts, W = components returned, D = dim.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from embedder.core.errors import ConfigError, ModelError
from embedder.core.quantization import Floats, cut_vectors
from embedder.core.retry import one_line, with_retries
from embedder.core.spec import API, EmbeddingSpec

try:
    import openai
except ImportError as error:
    raise ConfigError(
        f"a model named {API}NAME needs the package openai, which is not installed; pip install '.[openai]' from the checkout"
    ) from error

OPENAI_URL = "https://api.openai.com/v1"
KEY, ADDRESS = "OPENAI_API_KEY", "OPENAI_BASE_URL"
PROBE_TEXT = "A fixed text, by which the model behind an API is known again."  # its vector is stored: never change it

BATCH_TEXTS = 128
BATCH_CHARS = 200_000
"""About 50,000 tokens: in any language below the 300,000 that OpenAI allows per request."""
TIMEOUT_SECONDS = 120.0

_REFUSED = {400, 413, 422}
"""Statuses of requests that would fail again as a whole, but may succeed in parts."""
_NO_MONEY = "insufficient_quota"
"""OpenAI's code for a 429 that retries do not resolve."""


def choose_address(base_url: str | None) -> str:
    """Return the address in the settings, else in the environment, else OpenAI's, without a trailing slash."""
    return (base_url or os.environ.get(ADDRESS) or OPENAI_URL).rstrip("/")


class RefusedError(ModelError):
    """The server refused the request: a text too long, too many texts, an unknown parameter."""


@dataclass(slots=True)
class ApiEncoded:
    """Vectors of texts, with zeros for refused texts, and the reason by row of each refused text."""

    vectors_ND: Floats  # noqa: N815
    tokens: int | None
    """As billed; None if the server does not report them."""
    refused: dict[int, str] = field(default_factory=dict)

    def merge(self, other: "ApiEncoded") -> "ApiEncoded":
        """Return the texts of both, these first."""
        tokens = None if self.tokens is None or other.tokens is None else self.tokens + other.tokens
        refused = self.refused | {row + len(self.vectors_ND): reason for row, reason in other.refused.items()}
        return ApiEncoded(np.concatenate([self.vectors_ND, other.vectors_ND]), tokens, refused)

    def spread(self, place_N: npt.NDArray[np.int64]) -> "ApiEncoded":
        """Return the rows at these places, each as often as it is named."""
        refused = {row: self.refused[place] for row, place in enumerate(place_N.tolist()) if place in self.refused}
        return ApiEncoded(self.vectors_ND[place_N], self.tokens, refused)


class ApiClient:
    """One model on one server; the key comes from the environment."""

    def __init__(self, model: str, base_url: str, patience_seconds: float | None = None) -> None:
        self.name, self.where = model.removeprefix(API), f"{model} at {base_url}"
        self._patience_seconds = patience_seconds
        key = os.environ.get(KEY)
        if not key and base_url == OPENAI_URL:
            raise ConfigError(f"{self.where}: {KEY} is not set in the environment, which each node needs")
        # a self-hosted server may need no key; with_retries retries
        self._client = openai.OpenAI(base_url=base_url, api_key=key or "none", max_retries=0, timeout=TIMEOUT_SECONDS)

    def request(self, texts: Sequence[str], dimensions: int | None = None) -> tuple[Floats, int | None]:
        """Return texts' vectors (N, W) and billed tokens from one request, with retries; RefusedError if the server refuses it."""
        body: dict[str, Any] = {"model": self.name, "input": list(texts)} | ({"dimensions": dimensions} if dimensions else {})
        try:
            return with_retries(lambda: self._request_once(body), self.where, self._patience_seconds)
        except openai.APIStatusError as error:
            error_type = RefusedError if error.status_code in _REFUSED else ModelError
            raise error_type(f"{self.where}: {error.status_code} {type(error).__name__}: {one_line(error)}") from error
        except openai.OpenAIError as error:
            raise ModelError(f"{self.where}: {type(error).__name__}: {one_line(error.__cause__ or error)}") from error

    def _request_once(self, body: dict[str, Any]) -> tuple[Floats, int | None]:
        try:
            response = self._client.embeddings.create(**body)
            rows = sorted(response.data, key=lambda each: each.index)
            vectors_NW = np.array([each.embedding for each in rows], np.float32)
        except openai.APIStatusError as error:
            if error.code == _NO_MONEY:
                raise ModelError(f"{self.where}: {one_line(error)}; add credit to the account") from error
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(f"{self.where}: not a response of /v1/embeddings ({one_line(error)}); check base_url") from error
        num_texts = len(body["input"])
        if vectors_NW.ndim != 2 or len(vectors_NW) != num_texts or not np.isfinite(vectors_NW).all():
            raise ModelError(f"{self.where}: sent {num_texts} texts, received shape {vectors_NW.shape} or NaN; check the server")
        return vectors_NW, getattr(getattr(response, "usage", None), "prompt_tokens", None)


class ApiEncoder:
    """Texts → a spec's vectors. After the server refuses `dimensions` or a large request, neither is sent again."""

    def __init__(self, spec: EmbeddingSpec, patience_seconds: float | None = None) -> None:
        assert spec.base_url is not None, spec
        self.spec, self.client = spec, ApiClient(spec.model, spec.base_url, patience_seconds)
        self._dimensions = spec.dim if spec.normalize else None
        self._is_settled, self._most_texts = False, BATCH_TEXTS

    def probe(self) -> Floats:
        """Return the vector of a fixed text."""
        vector_D: Floats = self._request([PROBE_TEXT]).vectors_ND[0]
        return vector_D

    def encode(self, texts: Sequence[str]) -> ApiEncoded:
        """Return the vectors of texts, which include prompts, in their order; requests are bounded in size."""
        done, first = ApiEncoded(np.zeros((0, self.spec.dim), np.float32), 0), 0
        while first < len(texts):
            stop = find_stop(texts, first, self._most_texts)
            done = done.merge(self._embed([text or " " for text in texts[first:stop]]))  # APIs refuse an empty text
            first = stop
        return done

    def _embed(self, texts: list[str]) -> ApiEncoded:
        """Return the vectors from one request; if it is refused, from halves, down to single refused texts."""
        try:
            return self._request(texts)
        except RefusedError as error:
            if len(texts) == 1:
                self.probe()  # raises if the server refuses any text
                return ApiEncoded(np.zeros((1, self.spec.dim), np.float32), 0, {0: str(error)})
        half = -(-len(texts) // 2)
        both = self._embed(texts[:half]).merge(self._embed(texts[half:]))
        if not both.refused:
            self._most_texts = min(self._most_texts, half)
        return both

    def _request(self, texts: Sequence[str]) -> ApiEncoded:
        try:
            vectors_NW, tokens = self.client.request(texts, self._dimensions)
        except RefusedError:
            if self._dimensions is None or self._is_settled:
                raise
            (vectors_NW, tokens), self._dimensions = self.client.request(texts), None
        self._is_settled = True
        dim, width = self.spec.dim, vectors_NW.shape[1]
        if width < dim:
            raise ModelError(f"{self.client.where}: {width} components returned, and dim is {dim}; it is not the model of this spec")
        return ApiEncoded(cut_vectors(vectors_NW, dim, self.spec.normalize), tokens)


def find_stop(texts: Sequence[str], first: int, most_texts: int) -> int:
    """Return the end of a request that starts at `first`: bounded in texts and characters, but at least one text."""
    stop, num_chars = first, 0
    while stop < len(texts) and stop - first < most_texts:
        num_chars += len(texts[stop])
        if num_chars > BATCH_CHARS and stop > first:
            break
        stop += 1
    return stop
