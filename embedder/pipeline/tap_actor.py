"""Tap every depth of a sample for a calibration: the stage that tokenizes, and the actor that holds the full model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.neurons import KeptNeurons
from embedder.observe.process import gc_tuned
from embedder.pipeline.actors import Actor, choose_token_budget
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import from_ipc, to_ipc
from embedder.text.chunking import Chunker, chunk_documents, drop_tokenless
from embedder.text.known_item import split_sentence
from embedder.text.synthetic import mix_chunks
from embedder.text.token_idf import count_tokens
from embedder.text.tokenizing import load_tokenizer

Kind = Literal["held_out", "fitted", "broad"]
"""Whether a unit measures the maps, or they are fitted on it: as a part of the sample, or as broad text beside it."""


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
    """Synthetic chunks per chunk of the units of kind fitted."""
    seed: int = 0
    neurons: KeptNeurons | None = None
    """Of the layers whose states are tapped; the vectors are always those of all neurons."""


class SampleRow(TypedDict):
    """One unit of a sample."""

    number: int
    documents: bytes
    """schema.DOCUMENTS, as Arrow IPC."""
    kind: Kind


class TokenizedRow(TypedDict):
    """A tokenized unit."""

    kind: Kind
    token_ids: bytes
    """A column of token ids, as Arrow IPC: of the chunks, and then of synthetic chunks, or of as many passages as known-item queries."""
    num_real: int


class TappedRow(TypedDict):
    """A unit's states, each as float32 bytes of [chunks, …]."""

    kind: Kind
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
                self.tapped = self.encoder
                if tapping.neurons:
                    self.tapped = Encoder.load(tapping.spec, pool.device, pool.dtype, layout=pool.layout, neurons=tapping.neurons)
        self.tapping = tapping

    def process(self, row: TokenizedRow) -> TappedRow:
        """Return the states of a unit's chunks."""
        from embedder.model.runtime import ending_with_its_device

        token_ids = from_ipc(row["token_ids"])["token_ids"].combine_chunks()
        wanted = self.tapping
        with ending_with_its_device():
            tapped = self.tapped.tap_exits(token_ids, self.token_budget, wanted.layers, wanted.depths, wanted.weighing)
            full_NW = self.encoder.encode(token_ids, self.token_budget).vectors_ND if wanted.neurons else tapped.full_NW
        native = np.concatenate([tapped.native[depth] for depth in wanted.depths], axis=1)
        return {
            "kind": row["kind"],
            "num_real": row["num_real"],
            "states": tapped.states_NF.tobytes(),
            "native": native.tobytes(),
            "full": full_NW.tobytes(),
        }


def tokenize_documents(row: SampleRow, tapping: Tapping) -> TokenizedRow:
    """Chunk and tokenize one unit. Synthetic chunks are added to one of the sample that is fitted on, known items to one held out."""
    token_ids = _chunk(row, tapping.spec, tapping.tokenizer_json)["token_ids"].combine_chunks()
    more = token_ids.slice(0, 0)
    if row["kind"] == "fitted":
        more = mix_chunks(token_ids, round(tapping.synthetic * len(token_ids)), (tapping.seed, row["number"]))
    elif row["kind"] == "held_out":
        more = _make_known_items(from_ipc(row["documents"])["text"].to_pylist(), tapping)
    table = pa.table({"token_ids": pa.concat_arrays([token_ids, more])})
    return {"kind": row["kind"], "token_ids": to_ipc(table), "num_real": len(token_ids)}


def _make_known_items(texts: Sequence[str], tapping: Tapping) -> pa.ListArray:
    """Return the token ids of texts without their first sentences, as passages, and those of the sentences, as queries."""
    spec, tokenizer = tapping.spec.for_passages(), load_tokenizer(tapping.tokenizer_json)
    items = [] if spec.query_adapter != spec.adapter else [item for item in map(split_sentence, texts) if item[0]]
    sides = ([rest for _, rest in items], spec), ([query for query, _ in items], spec.model_copy(update={"prompt": spec.query_prompt}))
    passages, queries = (Chunker(tokenizer, each).chunk(side) for side, each in sides)
    has_tokens = pc.and_(pc.greater(passages["num_tokens"], 0), pc.greater(queries["num_tokens"], 0))
    return pa.concat_arrays([each.filter(has_tokens)["token_ids"].combine_chunks() for each in (passages, queries)])


def count_documents(row: SampleRow, spec: EmbeddingSpec, tokenizer_json: str, vocab_size: int) -> CountedRow:
    """Count one unit's chunks, and for each token id the chunks that hold it."""
    token_ids = _chunk(row, spec, tokenizer_json)["token_ids"].combine_chunks()
    return {"chunks": len(token_ids), "counts": count_tokens(token_ids, vocab_size).tobytes()}


def _chunk(row: SampleRow, spec: EmbeddingSpec, tokenizer_json: str) -> pa.Table:
    return drop_tokenless(chunk_documents(from_ipc(row["documents"]), load_tokenizer(tokenizer_json), spec))[0]
