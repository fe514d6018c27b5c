"""The grid's vectors that are timed are those that a sweep scores, and both contenders run."""

import numpy as np
import pytest
import torch

from embedder.benchmark.encoder_and_job import tokenize_texts
from embedder.benchmark.sweep_cost import GridPrice, make_grid, measure_grid_price
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.model.encoder import Encoder
from embedder.model.pooling import Head
from embedder.model.resolve import resolve_model
from tests.sentences import sentence

TEXTS = [sentence(number) for number in range(12)]


def test_the_grid_is_made_of_every_depth_and_dim(minilm: str) -> None:
    resolved = resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig())
    token_ids = tokenize_texts(TEXTS, resolved)["token_ids"].combine_chunks()
    encoder = Encoder.load(resolved.spec, dtype="float32")
    head = Head(torch.nn.Sequential(), resolved.spec.model_copy(update={"normalize": False}))
    grid = make_grid(encoder, head, token_ids, 4096, (6, 2), (384, 16))
    firsts = []
    for depth in (6, 2):
        cut = Encoder.load(resolved.spec.model_copy(update={"depth": depth}), dtype="float32")
        vector = cut.encode(token_ids, 4096).vectors_ND[0]
        firsts += [vector[0], vector[0] / np.linalg.norm(vector[:16])]
    assert grid == pytest.approx(np.mean(firsts), abs=1e-5)


def test_a_price_is_measured_for_the_depths_and_dims_of_a_study(minilm: str) -> None:
    price = measure_grid_price(minilm, TEXTS, 4096, rounds=1)
    assert (price.depths, price.dims) == ((6, 5, 4, 3, 2, 1), (384, 192, 96, 48, 24))
    assert 0.2 < price.ratio < 20


def test_the_price_is_said_in_a_line() -> None:
    line = GridPrice((2, 1), (8, 4, 2), 1000, 500.0, 1.0).text()
    assert line == "vectors of a sweep's whole grid (2 depths x 3 dims): 1.00 x the time of one plain pass over 1,000 tokens"
