"""Tap every depth of a sample for a calibration: the stage that tokenizes and the actor that holds the full model."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import AttentionPooling
from embedder.observe.process import gc_tuned
from embedder.pipeline.actors import Actor, choose_token_budget
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import Row, from_ipc, to_ipc
from embedder.text.chunking import chunk_documents
from embedder.text.token_idf import count_tokens
from embedder.text.tokenizing import load_tokenizer


@dataclass(frozen=True, slots=True)
class Tapping:
    """What the tapping of a sample needs."""

    spec: EmbeddingSpec
    """Of the full model, at its full width."""
    tokenizer_json: str
    layers: tuple[int, ...]
    depths: tuple[int, ...]
    """Of the layers, those where exits are to be."""
    weighing: AttentionPooling


class TapActor(Actor):
    """Holds the full model; gives what exits are fitted on, from one pass."""

    def setup(self, tapping: Tapping, pool: Pool) -> None:
        """Load the model."""
        with gc_tuned():
            from embedder.model.encoder import Encoder
            from embedder.model.runtime import refusing_device_errors, set_threads

            set_threads(pool.threads)
            with refusing_device_errors(pool.device):
                self.encoder = Encoder.load(tapping.spec, pool.device, pool.dtype, layout=pool.layout)
                self.token_budget = choose_token_budget(self.encoder, pool)
        self.tapping = tapping

    def process(self, row: Row) -> dict[str, Any]:
        """Replace a unit's chunks by their states."""
        from embedder.model.runtime import ending_with_its_device

        token_ids = from_ipc(row["chunks"])["token_ids"].combine_chunks()
        wanted = self.tapping
        with ending_with_its_device():
            tapped = self.encoder.tap_exits(token_ids, self.token_budget, wanted.layers, wanted.depths, wanted.weighing)
        native = np.concatenate([tapped.native[depth] for depth in wanted.depths], axis=1)
        return {
            "number": row["number"],
            "states": tapped.states_NF.tobytes(),
            "native": native.tobytes(),
            "full": tapped.full_NW.tobytes(),
        }


def tokenize_documents(row: Row, spec: EmbeddingSpec, tokenizer_json: str) -> dict[str, Any]:
    """Chunk and tokenize one unit of a sample."""
    chunks = chunk_documents(from_ipc(row["documents"]), load_tokenizer(tokenizer_json), spec)
    return {"number": row["number"], "chunks": to_ipc(chunks)}


def count_documents(row: Row, spec: EmbeddingSpec, tokenizer_json: str, vocab_size: int) -> dict[str, Any]:
    """Count of one unit of a sample its chunks, and for each token id those that hold it."""
    token_ids = chunk_documents(from_ipc(row["documents"]), load_tokenizer(tokenizer_json), spec)["token_ids"].combine_chunks()
    return {"chunks": len(token_ids), "counts": count_tokens(token_ids, vocab_size).tobytes()}
