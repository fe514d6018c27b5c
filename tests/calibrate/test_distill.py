"""Distillation starts from the map, keeps the best state, and gives an exit that the encoder reproduces."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from embedder.calibrate.config import CalibrateSettings, DistillSettings
from embedder.calibrate.distill import Distillation, Distilled, distill_exit
from embedder.calibrate.fit import measure_fidelity
from embedder.calibrate.ridge import Sums, unit
from embedder.calibrate.training import TrainingSet
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.calibration import Calibration, ExitMap, fitted_for
from embedder.model.encoder import Encoder
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.pipeline.pool import Pool
from embedder.sweep.candidates import tokenize
from embedder.text.token_idf import count_tokens, weigh_tokens
from tests.sentences import sentence

TEXTS = [" ".join(sentence(number + 7 * part) for part in range(number % 3 + 1)) for number in range(160)]
HELD_OUT = 60
POOL = Pool("cpu", "float32", 2048, (1, 1), 0, 1, 1, 1)


@pytest.fixture(scope="module")
def resolved(minilm: str) -> ResolvedModel:
    return resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig())


@pytest.fixture(scope="module")
def task(resolved: ResolvedModel) -> Distillation:
    """A map of depth 1 fitted on 100 texts; the other 60 are held out."""
    token_ids: pa.ListArray = tokenize(TEXTS, resolved, resolved.spec)
    pooling = start_attention_pooling(weigh_tokens(count_tokens(token_ids, resolved.vocab_size), len(TEXTS)), 6, 384)
    tapped = Encoder.load(resolved.spec, dtype="float32").tap_exits(token_ids, 2048, (0, 1), (1,), pooling)
    sums = Sums(1, tapped.states_NF.shape[1], 384)
    sums.add(tapped.states_NF[HELD_OUT:], tapped.full_NW[HELD_OUT:])
    [(_, start), (_, weak)] = sums.fit([0], [1.0, 30.0])  # a strength that leaves much to gain
    settings = CalibrateSettings(distill=DistillSettings(epochs=6, batch_chunks=10, learning_rate=1e-4), strengths=(0.1, 1.0))
    exit_map, chunks = ExitMap((0, 1), weak.weight_FW, weak.bias_W), TrainingSet(token_ids, tapped.full_NW, HELD_OUT)
    return Distillation(resolved.spec, pooling, exit_map, start, *sums.mean_and_deviation([0]), chunks, settings)


@pytest.fixture(scope="module")
def steps(task: Distillation) -> tuple[list[float], Distilled]:
    """Cosines of all states, and the result."""
    *lines, distilled = distill_exit(task, POOL)
    assert isinstance(distilled, Distilled)
    return [float(re.findall(r"cosine (\S+),", str(line))[0]) for line in lines], distilled


def load_exit(resolved: ResolvedModel, task: Distillation, exit_map: ExitMap) -> Encoder:
    calibration = Calibration(fitted_for(resolved.spec), 6, task.pooling, {1: exit_map}, {})
    changes = {"depth": 1, "exit": "calibrated", "calibration": calibration.fingerprint}
    return Encoder.load(resolved.spec.model_copy(update=changes), dtype="float32", calibration=calibration)


def test_it_starts_with_the_map_alone(resolved: ResolvedModel, task: Distillation, steps: tuple[list[float], Distilled]) -> None:
    vectors = load_exit(resolved, task, task.exit_map).encode(task.chunks.token_ids, 2048).vectors_ND
    by_map = measure_fidelity(vectors[:HELD_OUT], task.chunks.full_NW[:HELD_OUT])
    assert steps[0][0] == pytest.approx(by_map.cosine, abs=2e-4)


def test_the_encoder_reproduces_the_trained_exit(resolved: ResolvedModel, task: Distillation, steps: tuple[list[float], Distilled]) -> None:
    encoder, distilled = load_exit(resolved, task, steps[1].exit_map), steps[1]
    assert encoder.num_layers == 1
    vectors = encoder.encode(task.chunks.token_ids, 2048).vectors_ND
    np.testing.assert_allclose(vectors[HELD_OUT:], distilled.vectors_NW, atol=1e-4)
    cosine = measure_fidelity(vectors[:HELD_OUT], task.chunks.full_NW[:HELD_OUT]).cosine
    assert cosine == pytest.approx(distilled.fidelity.cosine, abs=1e-4)


def test_the_best_state_is_kept_and_beats_the_map_on_texts_held_out(steps: tuple[list[float], Distilled]) -> None:
    cosines, distilled = steps
    assert distilled.fidelity.cosine > cosines[0] + 0.005
    assert distilled.fidelity.cosine == pytest.approx(max(cosines), abs=1e-4)


def test_a_harmful_training_leaves_the_map_unchanged(resolved: ResolvedModel, task: Distillation) -> None:
    good = ExitMap((0, 1), task.start.weight_FW, task.start.bias_W)
    settings = CalibrateSettings(distill=DistillSettings(epochs=1, learning_rate=3.0), strengths=(1e4,))
    *lines, distilled = distill_exit(replace(task, exit_map=good, settings=settings), POOL)
    assert isinstance(distilled, Distilled)
    assert str(lines[-1]).startswith("solved anew at strength 10000, held out: ")
    vectors = load_exit(resolved, task, good).encode(task.chunks.token_ids, 2048).vectors_ND
    np.testing.assert_allclose(unit(distilled.vectors_NW), vectors[HELD_OUT:], atol=1e-4)
