"""The fastest backend and token budget are measured once a process, on rows of the corpus."""

import logging
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from embedder.benchmark.random_models import draw_rows
from embedder.model import choose_backend
from embedder.model.choose_backend import SAMPLE_TOKENS, Candidate, choose_fastest, draw_sample, list_budgets
from embedder.model.loading import BackendName
from embedder.model.results import Encoded

RATES = {"torch": {4096: 1000.0, 1024: 800.0}, "fused": {4096: 1100.0, 1024: 1350.0}}
"""Tokens a second by backend and token budget."""


class FakeEncoder:
    """Advances its clock by the time that its tokens take, and halves budgets above its memory."""

    backends: tuple[BackendName, ...] = ("torch", "fused")

    def __init__(self, memory_tokens: int = 4096) -> None:
        self.now, self.backend, self.memory_tokens = 0.0, "torch", memory_tokens
        self.calls: Counter[tuple[str, int]] = Counter()

    def use_backend(self, name: BackendName) -> None:
        self.backend = name

    def encode(self, token_ids: pa.ListArray, token_budget: int) -> Encoded:
        fitting = min(token_budget, self.memory_tokens)
        self.now += len(token_ids.flatten()) / RATES[self.backend][token_budget]
        self.calls[self.backend, token_budget] += 1
        return Encoded(np.zeros((len(token_ids), 1), np.float32), len(token_ids.flatten()), fitting)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    made = FakeEncoder()
    monkeypatch.setattr(choose_backend.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(choose_backend, "_chosen", {})
    monkeypatch.setattr(choose_backend, "MOST_SECONDS", 1e9)
    return made


ROWS = draw_rows(np.full(100, 100), 1000)


def test_the_fastest_is_chosen_logged_and_not_measured_again(encoder: FakeEncoder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "embedder")
    assert choose_fastest(encoder, ROWS, (4096, 1024), ("model",)) == Candidate("fused", 1024)
    assert encoder.backend == "fused"
    told = caplog.records[-1].getMessage()
    assert "fused with a token budget of 1024, 1.35 x as fast as torch" in told
    assert "torch 4096: 1,000" in told
    assert encoder.calls == {("torch", 4096): 2, ("torch", 1024): 2, ("fused", 4096): 4, ("fused", 1024): 4}, "slow ones are dropped"
    encoder.use_backend("torch")
    calls = encoder.calls.total()
    assert choose_fastest(encoder, ROWS, (4096, 1024), ("model",)) == Candidate("fused", 1024)
    assert (encoder.backend, encoder.calls.total()) == ("fused", calls)
    choose_fastest(encoder, ROWS, (4096, 1024), ("another model",))
    assert encoder.calls.total() > calls


def test_budgets_that_do_not_fit_are_left_out(encoder: FakeEncoder) -> None:
    encoder.memory_tokens = 2048
    encoder.backends = ("torch",)
    assert choose_fastest(encoder, ROWS, (4096, 1024), ()) == Candidate("torch", 1024)


def test_a_small_unit_decides_nothing(encoder: FakeEncoder) -> None:
    assert choose_fastest(encoder, ROWS.slice(0, 20), (4096, 1024), ()) is None
    assert not encoder.calls


def test_the_measurement_ends_after_some_seconds(encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_backend, "MOST_SECONDS", 1.0)
    assert choose_fastest(encoder, ROWS, (4096, 1024), ()) == Candidate("fused", 1024)
    assert set(encoder.calls.values()) == {2}


def test_a_sample_has_the_lengths_of_the_whole() -> None:
    lengths = np.tile([10, 500, 30], 2000)
    sample = draw_sample(draw_rows(lengths, 1000))
    assert len(sample.flatten()) == pytest.approx(SAMPLE_TOKENS, rel=0.05)
    assert np.diff(sample.offsets.to_numpy()).mean() == pytest.approx(180, rel=0.05)
    assert len(draw_sample(ROWS)) == len(ROWS)


def test_smaller_budgets_are_measured_beside_the_largest_that_fits() -> None:
    assert list_budgets(40_000) == (40_000, 32_768, 16_384, 8_192)
    assert list_budgets(2_048) == (2_048,)
