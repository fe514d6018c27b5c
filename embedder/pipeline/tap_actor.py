"""Tap every depth of a sample for a calibration: the stage that tokenizes, and the actor that holds the full model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.quantization import Floats
from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.neurons import KeptNeurons
from embedder.model.results import ExitStates
from embedder.observe.process import gc_tuned
from embedder.pipeline.actors import Actor, choose_token_budget
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import from_ipc, to_ipc
from embedder.text.chunking import Chunker, chunk_documents, drop_tokenless
from embedder.text.known_item import split_sentence
from embedder.text.synthetic import mix_chunks
from embedder.text.token_idf import Counts, count_tokens
from embedder.text.tokenizing import load_tokenizer

Kind = Literal["held_out", "fitted", "broad"]
"""Whether a unit measures the maps, or they are fitted on it: as a part of the sample, or as broad text beside it."""


Units = Sequence[tuple[Kind, pa.Table]]
"""DOCUMENTS of each unit, of which there are some."""

TappedUnit = tuple[Kind, int, ExitStates]
"""A unit's kind, how many chunks it has, and the states of these and of what was added: synthetic chunks, or known items and as many
queries."""


@dataclass(frozen=True, slots=True)
class Known:
    """Chunks whose states and vectors are known already."""

    rows: Mapping[bytes, int]
    """By token ids."""
    states: ExitStates

    @staticmethod
    def of(token_ids: pa.ListArray, states: ExitStates) -> "Known":
        """Return these chunks."""
        return Known({key: row for row, key in enumerate(_keys(token_ids))}, states)

    def tap(self, token_ids: pa.ListArray, tap: Callable[[pa.ListArray], ExitStates]) -> ExitStates:
        """Return the states of chunks, of which those not known are tapped."""
        rows_N = np.array([self.rows.get(key, -1) for key in _keys(token_ids)], np.int64)
        new = np.flatnonzero(rows_N < 0)
        tapped = tap(token_ids.take(pa.array(new))) if len(new) else self.states.rows(0, 0)

        def place(known_NX: Floats, tapped_NX: Floats) -> Floats:
            placed_NX = known_NX[rows_N]
            placed_NX[new] = tapped_NX
            return placed_NX

        native = {depth: place(each, tapped.native[depth]) for depth, each in self.states.native.items()}
        return ExitStates(place(self.states.states_NF, tapped.states_NF), native, place(self.states.full_NW, tapped.full_NW))


def _keys(token_ids: pa.ListArray) -> Iterator[bytes]:
    values, offsets = token_ids.values.to_numpy().astype(np.int64), token_ids.offsets.to_numpy()
    return (values[start:stop].tobytes() for start, stop in pairwise(offsets))


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
    known: Known | None = None
    """Chunks that need not run."""


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
        known, wanted = self.tapping.known, self.tapping
        with ending_with_its_device():
            tapped = known.tap(token_ids, self._tap) if known else self._tap(token_ids)
        native = np.concatenate([tapped.native[depth] for depth in wanted.depths], axis=1)
        return {
            "kind": row["kind"],
            "num_real": row["num_real"],
            "states": tapped.states_NF.tobytes(),
            "native": native.tobytes(),
            "full": tapped.full_NW.tobytes(),
        }

    def _tap(self, token_ids: pa.ListArray) -> ExitStates:
        wanted = self.tapping
        tapped: ExitStates = self.tapped.tap_exits(token_ids, self.token_budget, wanted.layers, wanted.depths, wanted.weighing)
        return replace(tapped, full_NW=self.encoder.encode(token_ids, self.token_budget).vectors_ND) if wanted.neurons else tapped


def read_tapped(row: TappedRow, tapping: Tapping) -> TappedUnit:
    """Return the arrays of a row."""
    full_NW = np.frombuffer(row["full"], np.float32).reshape(-1, tapping.spec.dim)
    native = np.frombuffer(row["native"], np.float32).reshape(len(full_NW), -1)
    by_depth = dict(zip(tapping.depths, np.split(native, len(tapping.depths), axis=1), strict=True))
    states_NF = np.frombuffer(row["states"], np.float32).reshape(len(full_NW), -1)
    return row["kind"], row["num_real"], ExitStates(states_NF, by_depth, full_NW)


def make_rows(units: Units) -> Iterator[SampleRow]:
    """Yield a row for each unit."""
    for number, (kind, documents) in enumerate(units):
        yield {"number": number, "documents": to_ipc(documents), "kind": kind}


def tokenize_documents(row: SampleRow, tapping: Tapping) -> TokenizedRow:
    """Chunk and tokenize one unit. Synthetic chunks are added to one of the sample that is fitted on, known items to one held out."""
    token_ids = chunk(from_ipc(row["documents"]), tapping.spec, tapping.tokenizer_json)
    more = token_ids.slice(0, 0)
    if row["kind"] == "fitted":
        more = mix_unit(token_ids, row["number"], tapping.synthetic, tapping.seed)
    elif row["kind"] == "held_out":
        more = _make_known_items(from_ipc(row["documents"])["text"].to_pylist(), tapping)
    table = pa.table({"token_ids": pa.concat_arrays([token_ids, more])})
    return {"kind": row["kind"], "token_ids": to_ipc(table), "num_real": len(token_ids)}


def mix_unit(token_ids: pa.ListArray, number: int, synthetic: float, seed: int) -> pa.ListArray:
    """Return the token ids of a unit's synthetic chunks."""
    return mix_chunks(token_ids, round(synthetic * len(token_ids)), (seed, number))


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
    token_ids = chunk(from_ipc(row["documents"]), spec, tokenizer_json)
    return {"chunks": len(token_ids), "counts": count_tokens(token_ids, vocab_size).tobytes()}


def sum_counts(rows: Iterable[CountedRow], vocab_size: int) -> tuple[int, Counts]:
    """Return the number of chunks of all units, and for each token id the chunks that hold it."""
    chunks, counts_V = 0, np.zeros(vocab_size, np.int64)
    for row in rows:
        chunks += row["chunks"]
        counts_V += np.frombuffer(row["counts"], np.int64)
    return chunks, counts_V


def chunk(documents: pa.Table, spec: EmbeddingSpec, tokenizer_json: str) -> pa.ListArray:
    """Return the token ids of documents' chunks."""
    chunks, _ = drop_tokenless(chunk_documents(documents, load_tokenizer(tokenizer_json), spec))
    return chunks["token_ids"].combine_chunks()
