"""Training the kept layers starts where the map is, keeps the best, and leaves an exit that the encoder runs as it was trained."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from embedder.calibrate.config import DistillSettings
from embedder.calibrate.distill import Progress, Taught, Teaching, distill_exit
from embedder.calibrate.ridge import Sums, measure_fidelity, unit
from embedder.calibrate.schedule import rate_at
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.calibration import Calibration, ExitMap, fitted_for
from embedder.model.encoder import Encoder
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.sweep.candidates import tokenize
from embedder.text.token_idf import count_tokens, weigh_tokens
from tests.sentences import sentence

TEXTS = [" ".join(sentence(number + 7 * part) for part in range(number % 3 + 1)) for number in range(160)]
HELD_OUT = 60


@pytest.fixture(scope="module")
def resolved(minilm: str) -> ResolvedModel:
    return resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig())


@pytest.fixture(scope="module")
def teaching(resolved: ResolvedModel) -> Teaching:
    """A map of depth 1 fitted on 100 texts; the other 60 are held out."""
    token_ids: pa.ListArray = tokenize(TEXTS, resolved, resolved.spec)
    weighing = start_attention_pooling(weigh_tokens(count_tokens(token_ids, resolved.vocab_size), len(TEXTS)), 6, 384)
    tapped = Encoder.load(resolved.spec, dtype="float32").tap_exits(token_ids, 2048, (0, 1), (1,), weighing)
    sums = Sums(tapped.states_NF.shape[1], 384)
    sums.add(tapped.states_NF[HELD_OUT:], tapped.full_NW[HELD_OUT:])
    places = np.arange(tapped.states_NF.shape[1])
    [(_, start), (_, line)] = sums.fit(places, [1.0, 30.0])  # far too much, so that there is something to gain
    exit_map, settings = ExitMap((0, 1), line.weight_FW, line.bias_W), DistillSettings(epochs=6, batch_chunks=10, learning_rate=1e-4)
    return Teaching(
        resolved.spec, 1, exit_map, start, (0.1, 1.0), weighing, sums.spread(places), token_ids, tapped.full_NW, HELD_OUT, settings, 0
    )


@pytest.fixture(scope="module")
def steps(teaching: Teaching) -> list[Progress | Taught]:
    return list(distill_exit(teaching, "cpu", "float32", 1))


def leaving(resolved: ResolvedModel, teaching: Teaching, exit_map: ExitMap) -> Encoder:
    calibration = Calibration(fitted_for(resolved.spec), 6, teaching.weighing, {1: exit_map}, {})
    changes = {"depth": 1, "exit": "calibrated", "calibration": calibration.fingerprint}
    return Encoder.load(resolved.spec.model_copy(update=changes), dtype="float32", calibration=calibration)


def test_it_starts_at_the_map_alone(resolved: ResolvedModel, teaching: Teaching, steps: list[Progress | Taught]) -> None:
    start = steps[0]
    assert isinstance(start, Progress)
    vectors = leaving(resolved, teaching, teaching.exit_map).encode(teaching.token_ids, 2048).vectors_ND
    by_map = measure_fidelity(vectors[:HELD_OUT], teaching.full_NW[:HELD_OUT])
    assert start.fidelity.cosine == pytest.approx(by_map.cosine, abs=1e-4)


def test_the_encoder_gives_what_the_training_ended_with(
    resolved: ResolvedModel, teaching: Teaching, steps: list[Progress | Taught]
) -> None:
    taught = steps[-1]
    assert isinstance(taught, Taught)
    encoder = leaving(resolved, teaching, taught.exit_map)
    assert encoder.num_layers == 1
    vectors = encoder.encode(teaching.token_ids, 2048).vectors_ND
    np.testing.assert_allclose(vectors[HELD_OUT:], taught.vectors_NW, atol=1e-4)
    assert measure_fidelity(vectors[:HELD_OUT], teaching.full_NW[:HELD_OUT]).cosine == pytest.approx(taught.fidelity.cosine, abs=1e-4)


def test_it_comes_nearer_to_the_full_model_on_texts_it_was_not_trained_on(steps: list[Progress | Taught]) -> None:
    start, taught = steps[0], steps[-1]
    assert isinstance(start, Progress)
    assert taught.fidelity.cosine > start.fidelity.cosine + 0.005
    assert taught.fidelity.cosine == max(each.fidelity.cosine for each in steps)


def test_a_training_that_only_does_harm_leaves_the_map_as_it_was(resolved: ResolvedModel, teaching: Teaching) -> None:
    good, settings = ExitMap((0, 1), teaching.start.weight_FW, teaching.start.bias_W), DistillSettings(epochs=1, learning_rate=3.0)
    wild = replace(teaching, exit_map=good, strengths=(1e4,), settings=settings)
    *steps, taught = distill_exit(wild, "cpu", "float32", 1)
    assert isinstance(taught, Taught)
    assert [step.name for step in steps if isinstance(step, Progress)][-1] == "solved anew at strength 10000"
    vectors = leaving(resolved, teaching, good).encode(teaching.token_ids, 2048).vectors_ND
    np.testing.assert_allclose(unit(taught.vectors_NW), vectors[HELD_OUT:], atol=1e-4)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [rate_at(progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert np.argmax(rates) == 6
