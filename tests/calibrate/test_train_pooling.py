"""Trained queries recover planted ones, are the same in each run, and are dropped if they do not help."""

import keyword
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from embedder.calibrate.config import AttentionSettings
from embedder.calibrate.ridge import Features
from embedder.calibrate.row_maps import map_rows, multiply_rows
from embedder.calibrate.token_states import open_token_states
from embedder.calibrate.train_pooling import (
    PoolingTask,
    PoolingTraining,
    TrainingSet,
    draw_training_set,
    tap_training_set,
    train_attention_pooling,
)
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.fidelity import unit
from embedder.core.schema import DOCUMENTS
from embedder.model.attention_pooling import UNQUERIED, start_attention_pooling
from embedder.model.encoder import Encoder
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.pipeline.in_process import tap_units
from embedder.pipeline.pool import Pool
from embedder.pipeline.tap_actor import TapActor, Tapping, Units
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
def task(resolved: ResolvedModel, token_ids: pa.ListArray) -> PoolingTask:
    start = start_attention_pooling(weigh_tokens(count_tokens(token_ids, resolved.vocab_size), len(TEXTS)), 6, SIZE)
    held_out, others = documents(TEXTS[:HELD_OUT]), documents(TEXTS[HELD_OUT:])
    tapping = Tapping(resolved.spec, resolved.tokenizer_json, (0, 1, 3), (1, 3), start)
    return PoolingTask(tapping, held_out, [others.slice(0, 200), others.slice(200)], 1, Features({1: (0, 1)}, (0, 1), SIZE, 4), SETTINGS)


@pytest.fixture(scope="module")
def plant(task: PoolingTask, token_ids: pa.ListArray) -> Callable[[], tuple[PoolingTraining, torch.Tensor]]:
    """Start a training whose full vectors are a random map of the states that one planted query pools at layer 1."""
    draw, start = np.random.default_rng(0), task.tapping.weighing
    planted = replace(start, queries_TQX=np.zeros_like(start.queries_TQX))
    planted.queries_TQX[1, 0, :SIZE] = draw.normal(0, 0.3, SIZE)
    encoder = Encoder.load(task.spec, dtype="float32")
    first, true = (encoder.tap_exits(token_ids, 2048, (0, 1), (), each).states_NF for each in (start, planted))
    place = (start.num_poolings + UNQUERIED) * SIZE
    full_NW = unit(true[:, place : place + SIZE] @ draw.normal(size=(SIZE, 384)).astype(np.float32))
    return lambda: (PoolingTraining(task, TrainingSet(token_ids, full_NW.copy(), HELD_OUT), POOL), torch.tensor(first))


def fit(run: PoolingTraining, states_NF: torch.Tensor, leaves_out: bool = True) -> dict[int, torch.Tensor]:
    """Fit maps to the states of layers 0 and 1."""
    return run.fit_maps(states_NF.view(len(states_NF), 2, -1), [0, 1], leaves_out)


def read(run: PoolingTraining) -> torch.Tensor:
    """Return the states of layers 0 and 1 by the current queries."""
    states_NTX = torch.empty(len(run.full_NW), 2, run.features.block)
    run.read_states(states_NTX, [0, 1])
    return states_NTX.flatten(1)


def test_a_planted_query_is_found(plant: Callable[[], tuple[PoolingTraining, torch.Tensor]]) -> None:
    run, states_NF = plant()
    start = fit(run, states_NF)
    assert torch.allclose(read(run), states_NF, atol=1e-4)
    for _ in range(SETTINGS.epochs):
        run.train(start)
    assert run.measure(fit(run, read(run), leaves_out=False)) > run.measure(start) + 0.02


def test_equal_seeds_train_equal_queries_and_only_at_layers_that_maps_read(
    plant: Callable[[], tuple[PoolingTraining, torch.Tensor]], task: PoolingTask
) -> None:
    trainings = [plant() for _ in range(2)]
    losses = [run.train(fit(run, states_NF)) for run, states_NF in trainings]
    first, second = (run.pooling.queries_TQX for run, _ in trainings)
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(first, second)
    moved = np.abs(first - task.tapping.weighing.queries_TQX).max(axis=(1, 2)) > 0
    assert moved.tolist() == [True, True, False, False, False, False, False]


def test_trained_queries_that_do_not_help_on_chunks_held_out_are_dropped(task: PoolingTask) -> None:
    wild = replace(task, settings=SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 50.0}))
    *lines, tapping = train_attention_pooling(wild, POOL)
    assert isinstance(tapping, Tapping)
    assert tapping.weighing is task.tapping.weighing
    assert [str(line).partition(",")[0] for line in lines[:2]] == ["300 chunks", "epoch 1"]


def test_the_training_set_has_the_chunks_held_out_first_and_at_most_the_wanted_number(task: PoolingTask, token_ids: pa.ListArray) -> None:
    chunks, num_held_out = draw_training_set(replace(task, settings=AttentionSettings(chunks=70)))
    assert (len(chunks), num_held_out) == (130, HELD_OUT)
    for part in (slice(0, HELD_OUT), slice(HELD_OUT, None)):
        drawn, whole = ({tuple(row) for row in rows[part].to_pylist()} for rows in (chunks, token_ids))
        assert drawn <= whole


def test_states_kept_on_disk_are_those_of_the_layers_to_bfloat16_and_train_alike(
    task: PoolingTask, token_ids: pa.ListArray, tmp_path: Path
) -> None:
    twice = pa.concat_arrays([token_ids, token_ids.slice(100, 3)])
    kept = open_token_states(tmp_path, twice, task.features.tapped, SIZE)
    assert kept is not None
    tapped = tap_training_set(task, POOL, twice, kept)
    plain = tap_training_set(task, POOL, twice, None)
    np.testing.assert_array_equal(tapped.states_NF, plain.states_NF)
    runs = [PoolingTraining(task, TrainingSet(twice, tapped.full_NW, HELD_OUT), POOL, each) for each in (kept, None)]
    torch.testing.assert_close(read(runs[0]), read(runs[1]), atol=2e-3, rtol=0)
    torch.testing.assert_close(read(runs[1]), torch.tensor(plain.states_NF), atol=1e-4, rtol=0)
    before = fit(runs[0], torch.tensor(tapped.states_NF))
    assert runs[0].train(before) == pytest.approx(runs[1].train(before), abs=1e-3)


def test_without_room_on_disk_layers_run_in_each_epoch(
    task: PoolingTask, token_ids: pa.ListArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = 2 * len(token_ids.values) * len(task.features.tapped) * SIZE
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: SimpleNamespace(free=2 * needed - 1))
    with caplog.at_level("WARNING", "embedder"):
        assert open_token_states(tmp_path, token_ids, task.features.tapped, SIZE) is None
    assert "each epoch runs the layers again" in caplog.text
    *_, tapping = train_attention_pooling(replace(task, settings=AttentionSettings(epochs=1, batch_chunks=100)), POOL)
    assert isinstance(tapping, Tapping)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("trained", [0.6, 0.4], ids=["better", "worse"])
def test_chunks_that_were_trained_on_are_known_when_they_are_tapped_and_synthetic_ones_too(
    task: PoolingTask, trained: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([0.5, trained])
    monkeypatch.setattr(PoolingTraining, "measure", lambda _self, _mapped: next(measured))
    settings = SETTINGS.model_copy(update={"chunks": 450})
    mixed = replace(task, keeps=True, tapping=replace(task.tapping, synthetic=1.0), settings=settings)
    *_, tapping = train_attention_pooling(mixed, POOL)
    assert isinstance(tapping, Tapping)
    if trained < 0.5:
        assert tapping is mixed.tapping
        return
    assert tapping.known is not None
    units: Units = [("held_out", task.held_out), *(("fitted", unit) for unit in task.units)]
    anew, tapped = (list(tap_units(units, each, POOL)) for each in (replace(tapping, known=None), tapping))
    for (kind, num_real, new), (_, _, known) in zip(anew, tapped, strict=True):
        assert len(new.full_NW) == num_real * (2 if kind == "fitted" else 1), "synthetic ones; no text has a first sentence"
        assert np.abs(known.states_NF - new.states_NF).max() < 3e-3, "kept in bfloat16"
        np.testing.assert_allclose(known.full_NW, new.full_NW, atol=1e-5)
        for depth in (1, 3):
            np.testing.assert_allclose(known.native[depth], new.native[depth], atol=1e-4)
    ran: list[int] = []
    tap = TapActor._tap
    monkeypatch.setattr(TapActor, "_tap", lambda self, token_ids: (ran.append(len(token_ids)), tap(self, token_ids))[1])
    list(tap_units(units, tapping, POOL))
    assert sum(ran) in (149, 150), "of 300 of the sample and 300 synthetic ones, 450 were trained on, of which two may be equal"
    list(tap_units(units, replace(tapping, synthetic=0.0), POOL))
    assert sum(ran) in (149, 150), "all are known"


def test_a_fitted_row_is_predicted_by_a_map_fitted_on_all_other_rows() -> None:
    torch.manual_seed(0)
    states_NF, full_NW = torch.randn(300, 40), torch.randn(300, 5)
    predicted = map_rows(multiply_rows(states_NF, 20), full_NW, 20, leaves_out=True)
    without: Any = [number for number in range(300) if number != 120]
    inner = multiply_rows(torch.cat([states_NF[120:121], states_NF[without]]), 21)
    by_others = map_rows(inner, torch.cat([full_NW[120:121], full_NW[without]]), 21, leaves_out=False)
    torch.testing.assert_close(predicted[:20], map_rows(multiply_rows(states_NF, 20), full_NW, 20, leaves_out=False))
    # the mean and the deviation include the row
    torch.testing.assert_close(predicted[120], by_others[0], atol=0.02, rtol=0)
