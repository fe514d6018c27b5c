"""A model behind an OpenAI-compatible /v1/embeddings: texts → vectors over the network, each text paid for once.

N = texts, W = components requested.
"""

import time
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from embedder.core.errors import ModelError
from embedder.core.quantization import Floats
from embedder.core.spec import digest
from embedder.model.api_encoder import BATCH_TEXTS, ApiClient, choose_address, find_stop
from embedder.sweep.candidates import Cache, Chunks, Report, Side, Texts, digest_texts
from embedder.sweep.config import BaselineConfig

MOST_CHARS = 24_000
"""Of a text: an API refuses texts above its model's limit, 8,191 tokens of more than 3 characters each in most languages."""


class Api:
    """A candidate that requests vectors at the largest dim; smaller ones are cut and normalized, as the API's `dimensions` does."""

    def __init__(self, baseline: BaselineConfig, cache: Cache, report: Report) -> None:
        self.name, self.dims = baseline.model, tuple(sorted(baseline.dims, reverse=True))
        self.width, self.usd_per_million = self.dims[0], baseline.price_per_million_tokens_usd
        self._baseline, self._cache, self._report = baseline, cache, report

    @cached_property
    def _client(self) -> ApiClient:
        """Opened only if a text is not cached, since it needs a key."""
        return ApiClient(self.name, choose_address(self._baseline.base_url))

    def embed(self, texts: Texts, side: Side, depth: int) -> Floats:
        """Return the API's vectors, shape (N, W)."""
        assert depth == 0, "an API has no depths"
        assert not isinstance(texts, Chunks), "no baseline is chunked"
        prompted = self._prompted(texts, side)
        key = self._key(prompted)
        names = self._cache.names(key)
        self._report(self.name, 0, len(texts))
        vectors, done = [], 0
        for number, batch in enumerate(plan_requests(prompted)):
            if not {f"{number}", f"{number}-usage"} <= names:
                vectors_NW, *usage = self._request(batch)
                self._cache.write(key, f"{number}", vectors_NW)
                self._cache.write(key, f"{number}-usage", np.array(usage))
            vectors.append(self._cache.read(key, f"{number}"))
            done += len(batch)
            self._report(self.name, done, len(texts))
        return np.concatenate(vectors)

    def measure(self, texts: Sequence[str]) -> tuple[int, float]:
        """Return the tokens and seconds that embedding these documents took."""
        self.embed(texts, "document", 0)
        key = self._key(self._prompted(texts, "document"))
        usages = [self._cache.read(key, name) for name in self._cache.names(key) if name.endswith("-usage")]
        tokens, seconds = np.sum(usages, axis=0).tolist()
        return int(tokens), seconds

    def _prompted(self, texts: Sequence[str], side: Side) -> list[str]:
        prompt = (self._baseline.prompt if side == "document" else self._baseline.query_prompt) or ""
        return [prompt + text for text in texts]

    def _key(self, prompted: Sequence[str]) -> str:
        return digest(self.name, self._baseline.base_url, self.width, digest_texts(prompted))

    def _request(self, texts: Sequence[str]) -> tuple[Floats, int, float]:
        """Return vectors, tokens and seconds of one request."""
        started = time.perf_counter()
        try:
            vectors_NW, tokens = self._client.request(texts, self.width)
        except ModelError as error:
            raise ModelError(f"baselines: {error}; finished vectors are kept, run again to resume") from error
        if vectors_NW.shape[1] != self.width:
            raise ModelError(
                f"baselines: {self.name}: {self.width} components were requested, {vectors_NW.shape[1]} returned; "
                "choose dims that the model has"
            )
        if tokens is None:
            raise ModelError(f"baselines: {self.name}: the server does not report a request's tokens, which the price needs; remove it")
        return vectors_NW, tokens, time.perf_counter() - started


def plan_requests(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield requests of bounded size, in order; long texts are truncated, and an empty text, which APIs refuse, becomes a space."""
    cut, first = [text[:MOST_CHARS] or " " for text in texts], 0
    while first < len(cut):
        stop = find_stop(cut, first, BATCH_TEXTS)
        yield cut[first:stop]
        first = stop
