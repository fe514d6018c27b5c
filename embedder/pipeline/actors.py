"""Classes that hold an encoder on a worker and encode one unit a call. They do not import Ray.

Importing an encoder takes seconds, so it is imported on the worker: the driver only names these classes.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from embedder.core.errors import EmbedderError, ModelError
from embedder.core.quantization import Floats, quantize
from embedder.core.schema import Reason
from embedder.core.units import Stats
from embedder.model.calibration import load_calibration
from embedder.model.results import Encoded
from embedder.observe.process import gc_tuned
from embedder.pipeline.chunk_sample import ChunkSampler
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import EncodedRow, EncodedUnit, PreparedRow, PreparedUnit, StageContext, from_ipc, to_ipc
from embedder.pipeline.stages import check_probe, cut_row
from embedder.table.attempts import MOST_POISON_DOCUMENTS, Attempts, isolate_poison_documents
from embedder.text.chunking import drop_tokenless

if TYPE_CHECKING:
    from embedder.model.encoder import Encoder

RowIn = TypeVar("RowIn")
RowOut = TypeVar("RowOut")

MOST_BROKEN = 16
"""If all documents of a unit have non-finite vectors, and there are at least this many, the model is at fault."""

_TOKENS = ("token_ids", "first_token")
"""Columns of chunks that only an encoder reads."""

logger = logging.getLogger("embedder")


class Actor(ABC, Generic[RowIn, RowOut]):
    """Set up once on a worker, then called with one row after the other.

    An error of the setup is raised at the first row. If a constructor raises, Ray retries it and then buries the reason in its report.
    """

    _refusal: EmbedderError | None = None

    def __init__(self, *args: Any) -> None:
        try:
            self.setup(*args)
        except EmbedderError as error:
            self._refusal = error

    def __call__(self, row: RowIn) -> RowOut:
        """Return the processed row, or raise the setup's error."""
        if self._refusal:
            raise self._refusal
        return self.process(row)

    @abstractmethod
    def setup(self, *args: Any) -> None:
        """Load the state that every row needs."""

    @abstractmethod
    def process(self, row: RowIn) -> RowOut:
        """Return the processed row."""


class UnitActor(Actor[PreparedRow, EncodedRow]):
    """Encodes units of the table; `setup` sets the encoder's probe vector."""

    probe: Floats

    def process(self, row: PreparedRow) -> EncodedRow:
        """Add the vectors of the unit's chunks, and drop the token ids."""
        unit = self.encode_unit(str(row["name"]), row["unit"]) if row["unit"] else None
        return {"key": row["key"], "name": row["name"], "error": row["error"], "broken": row["broken"], "unit": unit,
                "probe": self.probe.tolist()}  # fmt: skip

    @abstractmethod
    def encode_unit(self, name: str, unit: PreparedUnit) -> EncodedUnit:
        """Return the unit with its vectors."""


class EncoderActor(UnitActor):
    """Holds a model. Takes up to `pool.calls` units at a time, each on a thread. The token budget only falls; the backend is set once."""

    sampler: ChunkSampler | None = None
    """Only behind a calibrated exit."""

    def setup(self, context: StageContext, pool: Pool) -> None:
        """Load the model, and check that it computes the table's probe vector."""
        with gc_tuned():
            from embedder.model.encoder import Encoder
            from embedder.model.runtime import refusing_device_errors, set_threads

            set_threads(pool.threads)
            calibration = load_calibration(context.calibration_uri) if context.calibration_uri else None
            with refusing_device_errors(pool.device):
                self.encoder = Encoder.load(context.spec, pool.device, pool.dtype, calibration, pool.layout, pool.backend)
                self.token_budget = choose_token_budget(self.encoder, pool)
                self.probe = self.encoder.probe()
        check_probe(self.probe, context.probe, "check weights, dtype, and the versions of torch and transformers")
        self.context, self.spec, self.ranges, self.pool, self.is_chosen = context, context.spec, context.ranges, pool, False
        self.sampler = ChunkSampler(context.spec, context.ranges) if context.spec.exit == "calibrated" else None
        self.folder, self.max_attempts = context.folder, context.max_attempts
        self.attempts = Attempts.listed(self.folder)
        self.concurrency, self.clock = Concurrency(pool.calls), BusyClock()

    def process(self, row: PreparedRow) -> EncodedRow:
        """Cut the unit's documents if its reader left them whole, then encode it."""
        return super().process(cut_row(row, self.context, self.attempts))

    def encode_unit(self, name: str, unit: PreparedUnit) -> EncodedUnit:
        """Return the unit with its vectors, and mark the attempt.

        A unit that killed its worker too often is split to isolate its poison documents. No other unit is encoded meanwhile, so that
        each death is counted against the right documents.
        """
        chunks, tokenless = drop_tokenless(from_ipc(unit["chunks"]))
        result: Encoded | None = None
        poison_documents: list[int] = []
        with self.concurrency.shared():
            attempt = self.attempts.begin(name) if chunks.num_rows else 0
            started = time.perf_counter()
            if attempt <= self.max_attempts:
                result = self.encode(chunks)
        if result is None:
            with self.concurrency.exclusive():
                chunks, result, poison_documents = self.encode_carefully(name, chunks)
        seconds = self.clock.count(started)
        stats = count_copies(Stats(**unit["stats"]), result.copies, result.copied_tokens)
        stats = replace(stats, padded_tokens=result.padded_tokens, encode_seconds=seconds)
        chunks, vectors_ND, broken = drop_non_finite(name, chunks, result.vectors_ND)
        codes_NX = quantize(vectors_ND, self.spec.quantization, self.ranges)
        rejected = {Reason.NO_TOKENS: tokenless, Reason.KILLS_ENCODER: poison_documents, Reason.NOT_FINITE: broken}
        return {
            **unit,
            "chunks": to_ipc(chunks.select([name for name in chunks.schema.names if name not in _TOKENS])),
            "codes": codes_NX.tobytes(),
            "sample": self.sampler.draw(chunks["token_ids"].combine_chunks(), codes_NX) if self.sampler else b"",
            "stats": asdict(stats),
            "rejected": [document for documents in rejected.values() for document in documents],
            "reasons": [str(reason) for reason, documents in rejected.items() for _ in documents],
            "attempt": attempt,
        }

    def encode(self, chunks: pa.Table) -> Encoded:
        """Return the chunks' vectors, and keep a token budget that had to be lowered. A failed device ends the worker."""
        from embedder.model.late_chunking import read_passes
        from embedder.model.runtime import ending_with_its_device

        token_ids, spans = read_passes(chunks)
        with ending_with_its_device():
            self.choose_backend(token_ids)
            result = self.encoder.encode(token_ids, self.token_budget, spans)
        self.token_budget = min(self.token_budget, result.token_budget)
        return result

    def choose_backend(self, token_ids: pa.ListArray) -> None:
        """On a GPU with compute.backend=auto, measure the candidates on the first large unit, and use the fastest from then on."""
        if self.pool.backend != "auto" or self.is_chosen or self.encoder.device_type != "cuda":
            return
        from embedder.model.choose_backend import choose_fastest, list_budgets

        budgets = (self.pool.token_budget,) if self.pool.token_budget else list_budgets(self.token_budget)
        key = (self.spec, self.pool.dtype, self.pool.layout, budgets)
        fastest = choose_fastest(self.encoder, token_ids, budgets, key)
        if fastest is not None:
            self.is_chosen = True
            self.token_budget = min(self.token_budget, fastest.token_budget)

    def encode_carefully(self, name: str, chunks: pa.Table) -> tuple[pa.Table, Encoded, list[int]]:
        """Encode a unit in small ranges of documents; return the chunks that have vectors, the vectors, and the poison documents."""
        document = chunks["document"].to_numpy()
        encoded: dict[int, tuple[pa.Table, Encoded]] = {}

        def encode_range(documents: range) -> None:
            first, stop = np.searchsorted(document, [documents.start, documents.stop])
            part = chunks.slice(first, stop - first)
            encoded[documents.start] = part, self.encode(part)

        logger.warning("%s: its documents took the encoder down %d times; embedding them in small ranges", name, self.max_attempts)
        marks = Attempts.listed(self.folder)
        poison_documents = isolate_poison_documents(name, int(document[-1]) + 1, marks, self.max_attempts, encode_range)
        if len(poison_documents) >= MOST_POISON_DOCUMENTS:
            raise ModelError(
                f"embedding: the encoder died on each of {len(poison_documents)} documents of one unit ({name}), tried alone; "
                "the machine or its software is at fault rather than the documents; mend it and run again"
            )
        done = [encoded[start] for start in sorted(encoded)]
        padded_tokens, copies, copied_tokens = (
            sum(getattr(result, name) for _, result in done) for name in ("padded_tokens", "copies", "copied_tokens")
        )
        vectors_ND = np.concatenate([np.zeros((0, self.encoder.dim), np.float32), *(result.vectors_ND for _, result in done)])
        kept = pa.concat_tables([chunks.slice(0, 0), *(part for part, _ in done)])
        return kept, Encoded(vectors_ND, padded_tokens, self.token_budget, copies, copied_tokens), poison_documents


def count_copies(stats: Stats, copies: int, copied_tokens: int) -> Stats:
    """Count as reused the chunks that share an equal chunk's vector."""
    return stats + Stats(chunks=-copies, tokens=-copied_tokens, chunks_reused=copies, tokens_reused=copied_tokens)


def drop_non_finite(name: str, chunks: pa.Table, vectors_ND: Floats) -> tuple[pa.Table, Floats, list[int]]:
    """Drop documents with NaN or infinity in a vector, and return them last; ModelError if all of many are such."""
    document = chunks["document"].to_numpy()
    broken = np.unique(document[~np.isfinite(vectors_ND).all(axis=1)])
    if not len(broken):
        return chunks, vectors_ND, []
    if len(broken) >= MOST_BROKEN and len(broken) == len(np.unique(document)):
        raise ModelError(
            f"embedding: the vectors of all {len(broken)} documents of one unit ({name}) hold NaN or infinity; check the model's weights, "
            "and where compute.dtype is float16, set it to bfloat16 or float32"
        )
    kept_N = ~np.isin(document, broken)
    return chunks.filter(pa.array(kept_N)), vectors_ND[kept_N], broken.tolist()


def choose_token_budget(encoder: "Encoder", pool: Pool) -> int:
    """Return the budget that is set, or the largest that fits the actor's share of a GPU."""
    return pool.token_budget or encoder.find_token_budget(min(1.0, pool.num_gpus))


class Concurrency:
    """Admits up to a number of threads, or one that excludes all others."""

    def __init__(self, number: int) -> None:
        self._number, self._free, self._excluding = number, Semaphore(number), Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Wait until fewer than the number are inside."""
        with self._free:
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no other thread is inside, and admit none."""
        with self._excluding, ExitStack() as taken:
            for _ in range(self._number):
                taken.enter_context(self._free)
            yield


class BusyClock:
    """Measures the time covered by intervals that may overlap."""

    def __init__(self) -> None:
        self._counted_to, self._lock = 0.0, Lock()

    def count(self, started: float) -> float:
        """Return the seconds from `started`, by time.perf_counter, until now that are not counted yet."""
        with self._lock:
            now = time.perf_counter()
            seconds = now - max(started, self._counted_to)
            self._counted_to = now
        return seconds
