"""A model behind an OpenAI-compatible /v1/embeddings: texts → vectors over the network, each text paid for once.

N = texts, W = components asked for.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from embedder.core.errors import ModelError
from embedder.core.spec import digest
from embedder.model.api_encoder import BATCH_TEXTS, ApiClient, choose_address, find_stop
from embedder.sweep.cache import Cache, digest_texts
from embedder.sweep.candidates import Report, Side
from embedder.sweep.config import BaselineConfig

Floats = npt.NDArray[np.float32]

MOST_CHARS = 24_000
"""Of a text: an API refuses what is longer than its model's tokens, 8,191 and more than 3 characters each in most languages."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What some texts took."""

    tokens: int
    seconds: float


class Api:
    """A candidate whose vectors are asked for at the largest dim; smaller ones are cut and normalised, which is what `dimensions` does."""

    def __init__(self, baseline: BaselineConfig, cache: Cache, report: Report) -> None:
        self.name, self.dims = baseline.model, tuple(sorted(baseline.dims, reverse=True))
        self._baseline, self._cache, self._report = baseline, cache, report
        price = baseline.price_per_million_tokens_usd
        self.price_per_token_usd = None if price is None else price / 1e6

    @property
    def width(self) -> int:
        """Components asked for."""
        return self.dims[0]

    @cached_property
    def _client(self) -> ApiClient:
        """Made only if a text has not been embedded yet: a key is needed then."""
        return ApiClient(self.name, choose_address(self._baseline.base_url))

    def widths(self, texts: Sequence[str], side: Side, depth: int) -> Floats:
        """Give the API's vectors, shape (N, W)."""
        assert depth == 0, "an API has no depths"
        prompted = self._prompted(texts, side)
        batches, key = plan_requests(prompted), self._key(prompted)
        names = self._cache.names(key)
        self._report(self.name, 0, len(texts))
        vectors, done = [], 0
        for number, batch in enumerate(batches):
            if f"{number}" not in names or f"{number}-usage" not in names:
                vectors_NW, usage = self._embed(batch)
                self._cache.write(key, f"{number}", vectors_NW)
                self._cache.write(key, f"{number}-usage", np.array([usage.tokens, usage.seconds]))
            vectors.append(self._cache.read(key, f"{number}"))
            done += len(batch)
            self._report(self.name, done, len(texts))
        return np.concatenate(vectors)

    def measure(self, texts: Sequence[str]) -> Usage:
        """Say what these documents took, when they were embedded."""
        self.widths(texts, "document", 0)
        key = self._key(self._prompted(texts, "document"))
        totals = np.sum([self._cache.read(key, name) for name in self._cache.names(key) if name.endswith("-usage")], axis=0)
        return Usage(int(totals[0]), float(totals[1]))

    def _prompted(self, texts: Sequence[str], side: Side) -> list[str]:
        prompt = (self._baseline.prompt if side == "document" else self._baseline.query_prompt) or ""
        return [prompt + text for text in texts]

    def _key(self, prompted: Sequence[str]) -> str:
        return digest(self.name, self._baseline.base_url, self.width, digest_texts(prompted))

    def _embed(self, texts: Sequence[str]) -> tuple[Floats, Usage]:
        started = time.perf_counter()
        try:
            answer = self._client.ask(texts, self.width)
        except ModelError as error:
            raise ModelError(f"baselines: {error}; vectors so far are kept, run again to go on") from error
        if answer.vectors_NW.shape[1] != self.width:
            raise ModelError(
                f"baselines: {self.name}: {self.width} components were asked for, {answer.vectors_NW.shape[1]} came back; "
                "choose dims that the model has"
            )
        if answer.tokens is None:
            raise ModelError(f"baselines: {self.name}: the server does not say how many tokens a request took, by which it is priced")
        return answer.vectors_NW, Usage(answer.tokens, time.perf_counter() - started)


def plan_requests(texts: Sequence[str]) -> list[list[str]]:
    """Group texts, cut to what an API takes, into requests of bounded size, in order; an empty text, which APIs refuse, becomes a space."""
    cut, requests, first = [text[:MOST_CHARS] or " " for text in texts], [], 0
    while first < len(cut):
        stop = find_stop(cut, first, BATCH_TEXTS)
        requests.append(cut[first:stop])
        first = stop
    return requests
