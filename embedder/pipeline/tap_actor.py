"""Tap every depth of a sample for a calibration: the stage that tokenizes, and the actor that holds the full model."""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa

from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import AttentionPooling
from embedder.observe.process import gc_tuned
from embedder.pipeline.actors import Actor, choose_token_budget
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import from_ipc, to_ipc
from embedder.text.chunking import chunk_documents, drop_tokenless
from embedder.text.synthetic import mix_chunks
from embedder.text.token_idf import count_tokens
from embedder.text.tokenizing import load_tokenizer


@dataclass(frozen=True, slots=True)
class Tapping:
    """Values that the tapping of a sample needs."""

    spec: EmbeddingSpec
    """Of the full model, at its full width."""
    tokenizer_json: str
    layers: tuple[int, ...]
    depths: tuple[int, ...]
    """Layers at which exits are fitted."""
    weighing: AttentionPooling
    synthetic: float = 0.0
    """Synthetic chunks per chunk of the units that are fitted on."""
    seed: int = 0


class SampleRow(TypedDict):
    """One unit of a sample."""

    number: int
    documents: bytes
    """schema.DOCUMENTS, as Arrow IPC."""
    is_fitted: bool


class TokenizedRow(TypedDict):
    """A tokenized unit."""

    number: int
    token_ids: bytes
    """A column of token ids, as Arrow IPC; those of synthetic chunks last."""
    num_real: int


class TappedRow(TypedDict):
    """A unit's states, each as float32 bytes of [chunks, …]."""

    number: int
    num_real: int
    states: bytes
    native: bytes
    full: bytes


class CountedRow(TypedDict):
    """A unit's chunks, and for each token id the chunks that hold it, as int64 bytes."""

    chunks: int
    counts: bytes


class TapActor(Actor[TokenizedRow, TappedRow]):
    """Holds the full model, and computes in one pass the states that exits are fitted on."""

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

    def process(self, row: TokenizedRow) -> TappedRow:
        """Return the states of a unit's chunks."""
        from embedder.model.runtime import ending_with_its_device

        token_ids = from_ipc(row["token_ids"])["token_ids"].combine_chunks()
        wanted = self.tapping
        with ending_with_its_device():
            tapped = self.encoder.tap_exits(token_ids, self.token_budget, wanted.layers, wanted.depths, wanted.weighing)
        native = np.concatenate([tapped.native[depth] for depth in wanted.depths], axis=1)
        return {
            "number": row["number"],
            "num_real": row["num_real"],
            "states": tapped.states_NF.tobytes(),
            "native": native.tobytes(),
            "full": tapped.full_NW.tobytes(),
        }


def tokenize_documents(row: SampleRow, tapping: Tapping) -> TokenizedRow:
    """Chunk and tokenize one unit of a sample, and mix synthetic chunks of a unit that is fitted on."""
    token_ids = _chunk(row, tapping.spec, tapping.tokenizer_json)["token_ids"].combine_chunks()
    count = round(tapping.synthetic * len(token_ids)) if row["is_fitted"] else 0
    mixed = mix_chunks(token_ids, count, (tapping.seed, row["number"]))
    table = pa.table({"token_ids": pa.concat_arrays([token_ids, mixed])})
    return {"number": row["number"], "token_ids": to_ipc(table), "num_real": len(token_ids)}


def count_documents(row: SampleRow, spec: EmbeddingSpec, tokenizer_json: str, vocab_size: int) -> CountedRow:
    """Count one unit's chunks, and for each token id the chunks that hold it."""
    token_ids = _chunk(row, spec, tokenizer_json)["token_ids"].combine_chunks()
    return {"chunks": len(token_ids), "counts": count_tokens(token_ids, vocab_size).tobytes()}


def _chunk(row: SampleRow, spec: EmbeddingSpec, tokenizer_json: str) -> pa.Table:
    return drop_tokenless(chunk_documents(from_ipc(row["documents"]), load_tokenizer(tokenizer_json), spec))[0]
