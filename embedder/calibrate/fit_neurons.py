"""Documents of a sample → the neurons of the feed-forward blocks that exits run."""

from collections.abc import Iterator
from dataclasses import dataclass

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
from embedder.text.chunking import chunk_documents, drop_tokenless
from embedder.text.tokenizing import load_tokenizer

MOST_CHUNKS = 2048
"""Chunks whose neurons are measured: at 80 tokens each, about 100 tokens for each neuron of a small model's block."""


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
    """Yield a line of progress, then the neurons to keep. Memory holds a square matrix over the neurons of every layer, in float32."""
    set_threads(pool.threads)
    documents = task.documents.slice(0, MOST_CHUNKS)
    chunks, _ = drop_tokenless(chunk_documents(documents, load_tokenizer(task.tokenizer_json), task.spec))
    token_ids = chunks["token_ids"].combine_chunks().slice(0, MOST_CHUNKS)
    config = load_config(find_recipe(task.spec))
    encoder = Encoder.load(task.spec, pool.device, pool.dtype, layout=pool.layout)
    needed = moment_bytes(config, task.spec.depth)
    free = host_memory_bytes() if pool.device == "cpu" else free_device_bytes(torch.device(pool.device), 1.0)
    if needed > free:
        raise ConfigError(
            f"calibrate.feed_forward: what its {task.spec.depth} blocks are measured by takes {needed / 1e9:.1f} GB beside the model, "
            f"{free / 1e9:.1f} are free; leave it out, or calibrate on a machine with more memory"
        )
    moments, count = BlockMoments(encoder.layers, config), count_kept(config, task.share)
    with moments.hooked():
        encoder.tap_exits(token_ids, choose_token_budget(encoder, pool), (task.spec.depth,), (), task.pooling, moments.watch)
    yield f"{count} of {len(moments.moments[0]) - 1} neurons a layer kept, by {len(token_ids)} chunks"
    yield moments.keep(count)
