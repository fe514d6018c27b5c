"""Documents of a sample → the neurons of the feed-forward blocks that exits run."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from embedder.core.errors import ConfigError
from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.encoder import Encoder
from embedder.model.files.model_config import load_config
from embedder.model.files.recipe import find_recipe
from embedder.model.memory import free_device_bytes, host_memory_bytes
from embedder.model.neurons import KeptNeurons
from embedder.model.pruning import BlockMoments, count_kept, moment_bytes
from embedder.model.runtime import set_threads
from embedder.pipeline.actors import choose_token_budget
from embedder.pipeline.pool import Pool
from embedder.pipeline.tap_actor import chunk

TOKENS_PER_NEURON = 32
"""Tokens that output weights are fitted on, for each neuron kept."""
CHOICE_TOKENS = 4096
"""Tokens that the neurons are chosen by."""
MOST_DOCUMENTS = 2048
"""Documents whose chunks these are drawn from."""


@dataclass(frozen=True, slots=True)
class NeuronTask:
    """Documents and settings of one choice of neurons."""

    spec: EmbeddingSpec
    """Of the full model."""
    tokenizer_json: str
    documents: pa.Table
    """DOCUMENTS, in random order, each of which has at least one chunk."""
    share: float
    pooling: AttentionPooling


def fit_neurons(task: NeuronTask, pool: Pool) -> Iterator[str | KeptNeurons]:
    """Yield a line of progress, then the neurons to keep. Memory holds a matrix of the neurons kept by these and a state's components
    for each layer, in float32."""
    set_threads(pool.threads)
    config = load_config(find_recipe(task.spec))
    count = count_kept(config, task.share)
    encoder = Encoder.load(task.spec, pool.device, pool.dtype, layout=pool.layout)
    needed = moment_bytes(config, task.spec.depth, count)
    free = host_memory_bytes() if pool.device == "cpu" else free_device_bytes(torch.device(pool.device), 1.0)
    if needed > free:
        raise ConfigError(
            f"calibrate.feed_forward: what its {task.spec.depth} blocks are measured by takes {needed / 1e9:.1f} GB beside the model, "
            f"{free / 1e9:.1f} are free; keep fewer neurons, leave it out, or calibrate on a machine with more memory"
        )
    moments, token_ids, token_budget = BlockMoments(encoder.layers, config, count), draw_chunks(task), choose_token_budget(encoder, pool)
    for hooked, num_tokens in ((moments.choosing, CHOICE_TOKENS), (moments.measuring, TOKENS_PER_NEURON * count)):
        taken = cut_chunks(token_ids, num_tokens)
        with hooked():
            encoder.tap_exits(taken, token_budget, (task.spec.depth,), (), task.pooling, moments.watch)
    yield f"{count} of {moments.outers[0].in_features} neurons a layer kept, by {len(taken)} chunks"
    yield moments.fit()


def draw_chunks(task: NeuronTask) -> pa.ListArray:
    """Return the token ids of the chunks of the first documents, in random order: those of a long document are not read first."""
    token_ids = chunk(task.documents.slice(0, MOST_DOCUMENTS), task.spec, task.tokenizer_json)
    return token_ids.take(pa.array(np.random.default_rng(0).permutation(len(token_ids))))


def cut_chunks(token_ids: pa.ListArray, num_tokens: int) -> pa.ListArray:
    """Return the first chunks that together have at least so many tokens, or all."""
    ends = token_ids.offsets.to_numpy()[1:]
    return token_ids.slice(0, int(np.searchsorted(ends, num_tokens)) + 1)
