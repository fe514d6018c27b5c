"""A model behind an OpenAI-compatible /v1/embeddings: texts → vectors over the network. Needs the extra openai; imports no torch.

N = texts, W = components that come back, D = dim. What is refused (a text too long, a request too large) is told apart from a
server that is busy, which is asked again, and from one that will not serve at all, which ends the run.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedder.core.errors import ConfigError, ModelError
from embedder.core.quantization import Floats
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
PROBE_TEXT = "A fixed text, by which the model behind an API is known again."

BATCH_TEXTS = 128
BATCH_CHARS = 200_000
"""About 50,000 tokens of a request: below the 300,000 that OpenAI allows in any language."""
TIMEOUT_SECONDS = 120.0

_REFUSED = {400, 413, 422}
"""The same request would be refused again, but part of it may not be."""
_NO_MONEY = "insufficient_quota"
"""OpenAI's code for a 429 that waiting does not mend."""


def choose_address(base_url: str | None) -> str:
    """Give the address that is set, or else the environment's, or else OpenAI's, in one spelling."""
    return (base_url or os.environ.get(ADDRESS) or OPENAI_URL).rstrip("/")


class RefusedError(ModelError):
    """A request that the server understood and will not answer: a text too long, too many texts, an unknown parameter."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for some texts, in their order."""

    vectors_NW: Floats  # noqa: N815
    tokens: int | None
    """As billed; None where the server does not say."""


@dataclass(slots=True)
class ApiEncoded:
    """Vectors of texts, rows of zeros for texts refused, and why these were."""

    vectors_ND: Floats  # noqa: N815
    tokens: int | None
    refused: dict[int, str] = field(default_factory=dict)

    def joined(self, other: "ApiEncoded") -> "ApiEncoded":
        """Put the texts of another one behind these."""
        tokens = None if self.tokens is None or other.tokens is None else self.tokens + other.tokens
        moved = {number + len(self.vectors_ND): why for number, why in other.refused.items()}
        return ApiEncoded(np.concatenate([self.vectors_ND, other.vectors_ND]), tokens, self.refused | moved)


class ApiClient:
    """One model on one server; the key is the environment's."""

    def __init__(self, model: str, base_url: str, patience_seconds: float | None = None) -> None:
        self.name, self.where = model.removeprefix(API), f"{model} at {base_url}"
        self._patience_seconds = patience_seconds
        key = os.environ.get(KEY)
        if not key and base_url == OPENAI_URL:
            raise ConfigError(f"{self.where}: {KEY} is not set in the environment, which each node needs")
        # a server of one's own may want no key; retries are those of this project
        self._client = openai.OpenAI(base_url=base_url, api_key=key or "none", max_retries=0, timeout=TIMEOUT_SECONDS)

    def ask(self, texts: Sequence[str], dimensions: int | None = None) -> Answer:
        """Embed texts in one request; a server that is busy or breaks off is asked again after pauses that grow."""
        asked: dict[str, Any] = {"model": self.name, "input": list(texts)} | ({"dimensions": dimensions} if dimensions else {})
        try:
            return with_retries(lambda: self._ask_once(asked), self.where, self._patience_seconds)
        except openai.APIStatusError as error:
            kind = RefusedError if error.status_code in _REFUSED else ModelError
            raise kind(f"{self.where}: {error.status_code} {type(error).__name__}: {one_line(error)}") from error
        except openai.OpenAIError as error:
            reason = error.__cause__ or error
            raise ModelError(f"{self.where}: {type(error).__name__}: {one_line(reason)}") from error

    def _ask_once(self, asked: dict[str, Any]) -> Answer:
        try:
            response = self._client.embeddings.create(**asked)
            rows = sorted(response.data, key=lambda each: each.index)
            vectors_NW = np.array([each.embedding for each in rows], np.float32)
        except openai.APIStatusError as error:
            if error.code == _NO_MONEY:
                raise ModelError(f"{self.where}: {one_line(error)}; waiting does not mend that") from error
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(f"{self.where}: what came back is not that of /v1/embeddings ({one_line(error)}); check base_url") from error
        num_texts = len(asked["input"])
        if vectors_NW.ndim != 2 or len(vectors_NW) != num_texts or not np.isfinite(vectors_NW).all():
            raise ModelError(f"{self.where}: {num_texts} texts were sent, and an array of shape {vectors_NW.shape} or with NaN came back")
        usage = getattr(response, "usage", None)
        return Answer(vectors_NW, getattr(usage, "prompt_tokens", None))


class ApiEncoder:
    """Texts → vectors as a spec says. What the server turns out not to take (`dimensions`, large requests) is not tried again."""

    def __init__(self, spec: EmbeddingSpec, patience_seconds: float | None = None) -> None:
        assert spec.base_url is not None, spec
        self.spec, self.client = spec, ApiClient(spec.model, spec.base_url, patience_seconds)
        self._dimensions = spec.dim if spec.normalize else None
        self._is_settled, self._most_texts = False, BATCH_TEXTS

    def probe(self) -> Floats:
        """Give the vector of a fixed text."""
        vector_D: Floats = self._ask([PROBE_TEXT]).vectors_ND[0]
        return vector_D

    def encode(self, texts: Sequence[str]) -> ApiEncoded:
        """Embed texts, prompts included, in requests of bounded size; order and number are kept."""
        done, first = ApiEncoded(np.zeros((0, self.spec.dim), np.float32), 0), 0
        while first < len(texts):
            stop = find_stop(texts, first, self._most_texts)
            done = done.joined(self._embed([text or " " for text in texts[first:stop]]))  # APIs refuse an empty text
            first = stop
        return done

    def _embed(self, texts: list[str]) -> ApiEncoded:
        """Embed by one request, or where that is refused by two of half the texts: down to the texts that are refused alone."""
        try:
            return self._ask(texts)
        except RefusedError as error:
            if len(texts) == 1:
                self.probe()  # raises if it is not the text that is refused
                return ApiEncoded(np.zeros((1, self.spec.dim), np.float32), 0, {0: str(error)})
        half = -(-len(texts) // 2)
        both = self._embed(texts[:half]).joined(self._embed(texts[half:]))
        if not both.refused:
            self._most_texts = min(self._most_texts, half)
        return both

    def _ask(self, texts: Sequence[str]) -> ApiEncoded:
        try:
            answer = self.client.ask(texts, self._dimensions)
        except RefusedError:
            if self._dimensions is None or self._is_settled:
                raise
            answer, self._dimensions = self.client.ask(texts), None
        self._is_settled = True
        return ApiEncoded(finish_vectors(answer.vectors_NW, self.spec, self.client.where), answer.tokens)


def finish_vectors(vectors_NW: Floats, spec: EmbeddingSpec, where: str) -> Floats:
    """Cut to the spec's dim and give length 1, whatever the server did."""
    if vectors_NW.shape[1] < spec.dim:
        raise ModelError(f"{where}: gives {vectors_NW.shape[1]} components, and dim is {spec.dim}; it is not the model of this spec")
    cut_ND = np.ascontiguousarray(vectors_NW[:, : spec.dim])
    return cut_ND / np.maximum(np.linalg.norm(cut_ND, axis=1, keepdims=True), np.float32(1e-12)) if spec.normalize else cut_ND


def find_stop(texts: Sequence[str], first: int, most_texts: int) -> int:
    """Say where a request that starts at `first` ends: bounded in texts and characters, one text at least."""
    stop, num_chars = first, 0
    while stop < len(texts) and stop - first < most_texts:
        num_chars += len(texts[stop])
        if num_chars > BATCH_CHARS and stop > first:
            break
        stop += 1
    return stop
