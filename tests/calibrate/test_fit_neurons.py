"""The neurons that exits keep are chosen on the sample, where an encoder would run, and memory that is not there is refused."""

import numpy as np
import pyarrow as pa
import pytest

from embedder.calibrate import fit_neurons as module
from embedder.calibrate.fit_neurons import NeuronTask, cut_chunks, fit_neurons
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.neurons import KeptNeurons
from embedder.model.resolve import resolve_model
from tests.calibrate.test_train_pooling import POOL, SIZE, TEXTS, documents


@pytest.fixture(scope="module")
def task(minilm: str) -> NeuronTask:
    model = resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig())
    pooling = start_attention_pooling(np.ones(model.vocab_size, np.float32), 6, SIZE)
    return NeuronTask(model.spec, model.tokenizer_json, documents(TEXTS[:100]), 0.25, pooling)


@pytest.mark.real
def test_a_quarter_of_the_neurons_of_every_layer_is_kept(task: NeuronTask) -> None:
    line, kept = fit_neurons(task, POOL)
    assert line == "384 of 1536 neurons a layer kept, by 100 chunks"
    assert isinstance(kept, KeptNeurons)
    assert kept.places_LK.shape == (6, 384)
    assert (np.diff(kept.places_LK, axis=1) > 0).all()
    assert (kept.weight_LKH.shape, kept.bias_LH.shape) == ((6, 384, SIZE), (6, SIZE))


def test_chunks_are_taken_until_they_have_the_tokens_wanted() -> None:
    token_ids = pa.array([[1, 2], [3], [4, 5, 6]], pa.list_(pa.int32()))
    assert [len(cut_chunks(token_ids, wanted)) for wanted in (1, 2, 3, 4, 100)] == [1, 1, 2, 3, 3]


@pytest.mark.real
def test_no_more_tokens_are_measured_than_the_neurons_kept_need(task: NeuronTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_NEURON", 1)
    assert next(iter(fit_neurons(task, POOL))) == "384 of 1536 neurons a layer kept, by 22 chunks"


@pytest.mark.real
def test_moments_that_exceed_the_memory_are_refused(task: NeuronTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "host_memory_bytes", lambda: 10_000_000)
    with pytest.raises(
        ConfigError, match=r"calibrate\.feed_forward: what its 6 blocks are measured by takes 0\.0 GB beside the model, 0\.0 are"
    ):
        next(iter(fit_neurons(task, POOL)))
