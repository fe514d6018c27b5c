"""What holds a model on a worker: one encodes units of the table, the other taps a sample for a calibration. Neither knows Ray.

The driver needs no more than their names, and is spared the seconds that importing an encoder takes.
"""

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedder.core.errors import EmbedderError, ModelError
from embedder.core.quantization import Floats, quantize
from embedder.core.schema import Reason
from embedder.core.units import Stats
from embedder.model.calibration import load_calibration
from embedder.model.results import Encoded
from embedder.observe.process import gc_tuned
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import Row, StageContext, folder_of, from_ipc, to_ipc
from embedder.pipeline.stages import check_probe
from embedder.table.attempts import MOST_POISON_DOCUMENTS, Attempts, isolate_poison_documents
from embedder.text.chunking import CHUNKS

if TYPE_CHECKING:
    from embedder.model.encoder import Encoder


MOST_BROKEN = 16
"""Documents of a unit, none of which has a vector of numbers: beyond, it is the model that fails and not the documents."""

logger = logging.getLogger("embedder")


class Actor(ABC):
    """Begins once a worker, and is then called with one row after the other.

    What it refuses to begin with it raises at its first row. Raised while Ray makes the actor, Ray would begin again some times and
    then give a report that buries the reason.
    """

    _refusal: EmbedderError | None = None

    def __init__(self, *args: Any) -> None:
        try:
            self.setup(*args)
        except EmbedderError as error:
            self._refusal = error

    def __call__(self, row: Row) -> dict[str, Any]:
        """Give what becomes of a row."""
        if self._refusal:
            raise self._refusal
        return self.process(row)

    @abstractmethod
    def setup(self, *args: Any) -> None:
        """Load what every row needs."""

    @abstractmethod
    def process(self, row: Row) -> dict[str, Any]:
        """Give what becomes of a row."""


class EncoderActor(Actor):
    """Holds the model; only the token budget ever changes, and only down. Takes `pool.calls` units at a time, each from a thread."""

    def setup(self, context: StageContext, pool: Pool) -> None:
        """Load the model, and see that it gives the table's vectors."""
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
        self.spec, self.ranges = context.spec, context.ranges
        self.folder, self.max_attempts = folder_of(context), context.max_attempts
        self.attempts = Attempts.listed(self.folder)
        self.places, self.clock = Concurrency(pool.calls), BusyClock()

    def process(self, row: Row) -> dict[str, Any]:
        """Add the vectors of the unit's chunks; the token ids have done their work and go.

        The unit is marked as being tried. One that took its worker down too often is embedded piece by piece, without
        the documents that do it, and with no other beside it that might be what kills the worker.
        """
        nothing: dict[str, Any] = {"codes": None, "given_up": [], "reasons": [], "attempt": 0}
        encoded: dict[str, Any] = dict(row) | nothing | {"probe": self.probe.tobytes()}
        if row["chunks"] is None:
            return encoded
        chunks = from_ipc(row["chunks"])
        result: Encoded | None = None
        poison_documents: list[int] = []
        with self.places.one():
            attempt = self.attempts.begin(row["name"]) if chunks.num_rows else 0
            started = time.perf_counter()
            if attempt <= self.max_attempts:
                result = self.encode(chunks)
        if result is None:
            with self.places.all():
                chunks, result, poison_documents = self.encode_carefully(row["name"], chunks)
        seconds = self.clock.count(started)
        stats = replace(Stats(**json.loads(row["stats"])), padded_tokens=result.padded_tokens, encode_seconds=seconds)
        chunks, vectors_ND, broken = drop_non_finite(row["name"], chunks, result.vectors_ND)
        return encoded | {
            "chunks": to_ipc(chunks.drop_columns(["token_ids"])),
            "codes": quantize(vectors_ND, self.spec.quantization, self.ranges).tobytes(),
            "stats": json.dumps(asdict(stats)),
            "given_up": [*poison_documents, *broken],
            "reasons": [str(Reason.KILLS_ENCODER)] * len(poison_documents) + [str(Reason.NOT_FINITE)] * len(broken),
            "attempt": attempt,
        }

    def encode(self, chunks: pa.Table) -> Encoded:
        """Embed chunks; a budget that was too large for the device's memory is not tried again. A device that fails ends the worker."""
        from embedder.model.runtime import ending_with_its_device

        token_ids = chunks["token_ids"].combine_chunks() if chunks.num_rows else pa.array([], CHUNKS.field("token_ids").type)
        with ending_with_its_device():
            result = self.encoder.encode(token_ids, self.token_budget)
        self.token_budget = min(self.token_budget, result.token_budget)
        return result

    def encode_carefully(self, name: str, chunks: pa.Table) -> tuple[pa.Table, Encoded, list[int]]:
        """Embed a unit piece by piece; gives the chunks that have vectors, these, and the documents that take the encoder down."""
        document = chunks["document"].to_numpy()
        pieces: dict[int, tuple[pa.Table, Encoded]] = {}

        def try_piece(piece: range) -> None:
            first, stop = np.searchsorted(document, [piece.start, piece.stop])
            part = chunks.slice(first, stop - first)
            pieces[piece.start] = part, self.encode(part)

        logger.warning("%s: its documents took the encoder down %d times; embedding them piece by piece", name, self.max_attempts)
        marks = Attempts.listed(self.folder)
        poison_documents = isolate_poison_documents(name, int(document[-1]) + 1, marks, self.max_attempts, try_piece)
        if len(poison_documents) >= MOST_POISON_DOCUMENTS:
            raise ModelError(
                f"embedding: the encoder died on each of {len(poison_documents)} documents of one unit ({name}), tried alone; "
                "the machine or its software is at fault rather than the documents; mend it and run again"
            )
        done = [pieces[start] for start in sorted(pieces)]
        padded_tokens = sum(result.padded_tokens for _, result in done)
        vectors_ND = np.concatenate([np.zeros((0, self.encoder.dim), np.float32), *(result.vectors_ND for _, result in done)])
        kept = pa.concat_tables([chunks.slice(0, 0), *(part for part, _ in done)])
        return kept, Encoded(vectors_ND, padded_tokens, self.token_budget), poison_documents


def drop_non_finite(name: str, chunks: pa.Table, vectors_ND: Floats) -> tuple[pa.Table, Floats, list[int]]:
    """Leave out documents of which a vector has a component that is no number, and give them; ModelError if all of many are such."""
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
    """Take the budget that was set, or what fits into the share of a GPU that the actor holds."""
    return pool.token_budget or encoder.find_token_budget(min(1.0, pool.num_gpus))


class Concurrency:
    """So many threads at a time, or one that has all places to itself."""

    def __init__(self, number: int) -> None:
        self._number, self._free, self._taking_all = number, Semaphore(number), Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take a place, once there is one."""
        with self._free:
            yield

    @contextmanager
    def all(self) -> Iterator[None]:
        """Take all places, once nobody else has any."""
        with self._taking_all, ExitStack() as taken:
            for _ in range(self._number):
                taken.enter_context(self._free)
            yield


class BusyClock:
    """Seconds of stretches that may overlap: what two threads spend side by side counts once."""

    def __init__(self) -> None:
        self._counted_to, self._lock = 0.0, Lock()

    def count(self, started: float) -> float:
        """Give the seconds from `started`, by time.perf_counter, until now that were not counted yet."""
        with self._lock:
            now = time.perf_counter()
            seconds = now - max(started, self._counted_to)
            self._counted_to = now
        return seconds
