"""Learned queries find what tells the full model's vectors, the same ones at each run, and are dropped where they are of no use."""

import keyword
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from embedder.calibrate.config import AttentionSettings
from embedder.calibrate.ridge import unit
from embedder.calibrate.train_pooling import Learning, Lessons, Run, map_rows, take_lessons, train_attention_pooling
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.schema import DOCUMENTS
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.encoder import Encoder
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.pipeline.pool import Pool
from embedder.sweep.candidates import tokenize
from embedder.text.token_idf import count_tokens, weigh_tokens
from tests.sentences import SUBJECTS, VERBS

WORDS = (*keyword.kwlist, *SUBJECTS, *VERBS)
TEXTS = [" ".join(random.Random(number).choices(WORDS, k=8 + number % 12)) for number in range(360)]
HELD_OUT, SIZE = 60, 384
POOL = Pool("cpu", "float32", 2048, (1, 1), 0, 1, 1, 1)
SETTINGS = AttentionSettings(epochs=6, batch_chunks=20, learning_rate=0.02)


def documents(texts: list[str]) -> pa.Table:
    rows = len(texts)
    columns = {"doc_id": [""] * rows, "text": texts, "content_hash": [""] * rows, "shard": [""] * rows, "row": list(range(rows))}
    return pa.table(columns, schema=DOCUMENTS)


@pytest.fixture(scope="module")
def resolved(minilm: str) -> ResolvedModel:
    return resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig())


@pytest.fixture(scope="module")
def token_ids(resolved: ResolvedModel) -> pa.ListArray:
    return tokenize(TEXTS, resolved, resolved.spec)


@pytest.fixture(scope="module")
def learning(resolved: ResolvedModel, token_ids: pa.ListArray) -> Learning:
    start = start_attention_pooling(weigh_tokens(count_tokens(token_ids, resolved.vocab_size), len(TEXTS)), 6, SIZE)
    held_out, others = documents(TEXTS[:HELD_OUT]), documents(TEXTS[HELD_OUT:])
    return Learning(resolved.spec, resolved.tokenizer_json, held_out, others, {1: (0, 1)}, start, SETTINGS, 0)


@pytest.fixture
def plant(learning: Learning, token_ids: pa.ListArray) -> Callable[[float], Run]:
    """Begin a training whose full vectors are a random map of what one query reads of layer 1, so sharp or even."""

    def begin(sharpness: float) -> Run:
        draw = np.random.default_rng(0)
        planted = replace(learning.weighing, queries_TQX=np.zeros_like(learning.weighing.queries_TQX))
        planted.queries_TQX[1, 0, :SIZE] = draw.normal(0, sharpness, SIZE)
        encoder = Encoder.load(learning.spec, dtype="float32")
        first, true = (encoder.tap_exits(token_ids, 2048, (0, 1), (), each).states_NF for each in (learning.weighing, planted))
        full_NW = unit(true[:, 6 * SIZE : 7 * SIZE] @ draw.normal(size=(SIZE, 384)).astype(np.float32))
        return Run(learning, Lessons(token_ids, first, full_NW, HELD_OUT), POOL)

    return begin


def test_a_planted_query_is_found(plant: Callable[[float], Run]) -> None:
    run = plant(0.3)
    start = run.solve(torch.from_numpy(run.lessons.states_NF))
    assert torch.allclose(run.read_states(), torch.from_numpy(run.lessons.states_NF), atol=1e-4)
    for _ in range(SETTINGS.epochs):
        run.train(start)
    assert run.measure(run.solve(run.read_states())) > run.measure(start) + 0.02


def test_equal_seeds_learn_equal_queries_and_leave_layers_alone_that_no_map_reads(
    plant: Callable[[float], Run], learning: Learning
) -> None:
    runs = [plant(0.3) for _ in range(2)]
    losses = [run.train(run.solve(torch.from_numpy(run.lessons.states_NF))) for run in runs]
    first, second = (run.student.weighing(learning.weighing).queries_TQX for run in runs)
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(first, second)
    moved = np.abs(first - learning.weighing.queries_TQX).max(axis=(1, 2)) > 0
    assert moved.tolist() == [True, True, False, False, False, False, False]


def test_queries_that_are_of_no_use_on_chunks_held_out_are_dropped(learning: Learning) -> None:
    wild = replace(learning, settings=SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 50.0}))
    *said, weighing = train_attention_pooling(wild, POOL)
    assert weighing is learning.weighing
    assert [str(line).partition(",")[0] for line in said[:2]] == ["300 chunks", "epoch 1"]


def test_no_more_chunks_are_drawn_than_asked_for_and_those_held_out_come_first(learning: Learning, token_ids: pa.ListArray) -> None:
    lessons = take_lessons(replace(learning, settings=AttentionSettings(chunks=70)), POOL)
    assert (len(lessons.token_ids), lessons.num_held_out, lessons.full_NW.shape) == (130, HELD_OUT, (130, 384))
    for part in (slice(0, HELD_OUT), slice(HELD_OUT, None)):
        drawn, whole = ({tuple(row) for row in rows[part].to_pylist()} for rows in (lessons.token_ids, token_ids))
        assert drawn <= whole


def test_a_row_stands_for_what_a_map_fitted_on_all_others_makes_of_it() -> None:
    torch.manual_seed(0)
    states_NF, full_NW = torch.randn(300, 40), torch.randn(300, 5)
    predicted = map_rows(states_NF, full_NW, 20)
    without: Any = [number for number in range(300) if number != 120]
    by_others = map_rows(torch.cat([states_NF[120:121], states_NF[without]]), torch.cat([full_NW[120:121], full_NW[without]]), 21)
    # but for the mean and the deviation, which are of all rows
    torch.testing.assert_close(predicted[120], by_others[0], atol=0.02, rtol=0)
