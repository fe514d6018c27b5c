"""The Ray Data graph: tasks are read into units, units are encoded on actors, parts are written. The only ray import.

One row is one unit: Ray can neither split nor merge it, an empty unit survives, and the encoder's stage needs no batch
size. A task's reader is a generator, so a unit is encoded while the next one is read.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from embedder.config import ComputeConfig
from embedder.errors import EmbedderError, ModelError
from embedder.model.calibration import load_calibration
from embedder.model.encoder import Encoded, Encoder
from embedder.model.runtime import set_threads
from embedder.output.attempts import MOST_KILLERS, Attempts, isolate_killers
from embedder.planning import Plan
from embedder.quantization import quantize
from embedder.schema import CHUNKS
from embedder.stages import Job, Row, folder_of, from_ipc, prepare_units, task_row, to_ipc, write_unit
from embedder.work import Part, Stats, Task

PROBE_COSINE = 0.99
"""A machine whose probe vector is further than this from the table's does not compute the table's space. bfloat16 stays above 0.998."""

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class Pool:
    """How many encoder actors, and what each holds."""

    device: str
    dtype: str
    token_budget: int
    actors: tuple[int, int]
    num_gpus: float
    num_cpus: float
    threads: int
    reader_cpus: float


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of one unit (`part`), or of one task that could not be read to its end (`error`)."""

    key: str
    part: Part | None
    error: str | None
    reasons: Mapping[str, int]
    probe: tuple[float, ...] | None


def start_ray() -> None:
    """Connect to the cluster of RAY_ADDRESS, or start a quiet local one; does nothing if this process has one."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    on_terminate = signal.getsignal(signal.SIGTERM)
    if not ray.is_initialized() and address == "local":
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with muted_stderr():
            ray.init(address=address, logging_level="ERROR", include_dashboard=False, log_to_driver=False)
    elif not ray.is_initialized():
        ray.init(address=address, logging_level="ERROR")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler ends the process with a core dump
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block, and so a message to the next stage, for every row
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def muted_stderr() -> Iterator[None]:
    """Keep Ray's native code from announcing its own log level; failures to start are raised, not printed."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def choose_pool(compute: ComputeConfig) -> Pool:
    """Fill in what the settings leave open from what the cluster has."""
    resources = ray.cluster_resources()
    num_gpus = resources.get("GPU", 0.0)
    device = compute.device if compute.device != "auto" else "cuda" if num_gpus else "cpu"
    node_cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    most_cpus = max(node_cpus, default=1.0)
    if device == "cuda":
        held, cpus = compute.num_gpus or 1.0, compute.num_cpus or 1.0
        actors = compute.actors or (1, max(1, int(num_gpus / held)))
        threads = max(1, int(cpus))
    else:
        # leaves room for one reader and two writers on a node of two cores, where they mostly wait
        held, cpus = 0.0, compute.num_cpus or max(0.5, most_cpus - 1.5)
        full_nodes = sum(1 for each in node_cpus if each >= most_cpus)
        actors = compute.actors or (full_nodes, full_nodes)
        threads = max(1, int(compute.num_cpus or most_cpus / max(1, actors[1] // max(1, full_nodes))))
    budget = compute.token_budget or (65_536 if device == "cuda" else 4_096)
    # stages that ask for the same resources would be fused into one, and the encoder would wait for the reader
    reader_cpus = 0.99 * min(1.0, most_cpus / 4)
    return Pool(device, compute.dtype, budget, actors, held, cpus, threads, reader_cpus)


def embed_units(tasks: Sequence[Task], plan: Plan, job: Job, pool: Pool) -> Iterator[Landed]:
    """Read, embed and write the units of all tasks; yield each as it lands, in no order.

    Units whose part is on storage already (`plan.done`) are read past, and reported like the others. What a
    worker raises comes out as it was raised there.
    """
    graph = build_graph(tasks, plan, job, pool)
    try:
        for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield landed(row)
    except RayError as error:
        raise find_cause(error) from error


def build_graph(tasks: Sequence[Task], plan: Plan, job: Job, pool: Pool) -> Dataset:
    """Lay out the three stages, without running them."""
    rows = [task_row(task, plan) for task in tasks]
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .flat_map(prepare_units, fn_args=(job,), num_cpus=pool.reader_cpus)
        .map(
            EncoderActor,
            fn_constructor_args=(job, pool),
            compute=ActorPoolStrategy(min_size=pool.actors[0], max_size=pool.actors[1]),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
        )
        .map(write_unit, fn_args=(job,), num_cpus=pool.reader_cpus / 4)
    )


class EncoderActor:
    """Holds the model; only the token budget ever changes, and only down."""

    def __init__(self, job: Job, pool: Pool) -> None:
        set_threads(pool.threads)
        calibration = load_calibration(job.calibration_uri) if job.calibration_uri else None
        self.encoder = Encoder.load(job.spec, pool.device, pool.dtype, calibration)
        self.token_budget = pool.token_budget
        self.probe = self.encoder.probe()
        check_probe(self.probe, job.probe)
        self.spec, self.ranges = job.spec, job.ranges
        self.folder, self.max_attempts = folder_of(job), job.max_attempts
        self.attempts = Attempts.listed(self.folder)

    def __call__(self, row: Row) -> dict[str, Any]:
        """Add the vectors of the unit's chunks; the token ids have done their work and go.

        The unit is marked as being tried. One that took its worker down too often is embedded piece by piece, without
        the documents that do it.
        """
        encoded: dict[str, Any] = dict(row) | {"codes": None, "killers": [], "attempt": 0, "probe": self.probe.tobytes()}
        if row["chunks"] is None:
            return encoded
        started = time.perf_counter()
        chunks = from_ipc(row["chunks"])
        attempt = self.attempts.begin(row["name"]) if chunks.num_rows else 0
        if attempt > self.max_attempts:
            chunks, result, killers = self.encode_carefully(row["name"], chunks)
        else:
            result, killers = self.encode(chunks), []
        seconds = time.perf_counter() - started
        stats = replace(Stats(**json.loads(row["stats"])), padded_tokens=result.padded_tokens, encode_seconds=seconds)
        return encoded | {
            "chunks": to_ipc(chunks.drop_columns(["token_ids"])),
            "codes": quantize(result.vectors_ND, self.spec.quantization, self.ranges).tobytes(),
            "stats": json.dumps(asdict(stats)),
            "killers": killers,
            "attempt": attempt,
        }

    def encode(self, chunks: pa.Table) -> Encoded:
        """Embed chunks; a budget that was too large for the device's memory is not tried again."""
        token_ids = chunks["token_ids"].combine_chunks() if chunks.num_rows else pa.array([], CHUNKS.field("token_ids").type)
        result = self.encoder.encode(token_ids, self.token_budget)
        self.token_budget = result.token_budget
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
        killers = isolate_killers(name, int(document[-1]) + 1, marks, self.max_attempts, try_piece)
        if len(killers) >= MOST_KILLERS:
            raise ModelError(
                f"embedding: the encoder died on each of {len(killers)} documents of one unit ({name}), tried alone; "
                "the machine or its software is at fault rather than the documents; mend it and run again"
            )
        done = [pieces[start] for start in sorted(pieces)]
        padded_tokens = sum(result.padded_tokens for _, result in done)
        vectors_ND = np.concatenate([np.zeros((0, self.encoder.dim), np.float32), *(result.vectors_ND for _, result in done)])
        kept = pa.concat_tables([chunks.slice(0, 0), *(part for part, _ in done)])
        return kept, Encoded(vectors_ND, padded_tokens, self.token_budget), killers


def check_probe(probe_D: npt.NDArray[np.float32], expected: Sequence[float] | None) -> None:
    """Refuse an encoder that no longer gives the table's probe vector."""
    if expected is None:
        return
    wanted_D = np.asarray(expected, dtype=np.float32)
    cosine = float(probe_D @ wanted_D / (np.linalg.norm(probe_D) * np.linalg.norm(wanted_D)))
    if not cosine >= PROBE_COSINE:
        raise ModelError(
            f"embedding: this machine's vector of the probe text has a cosine of {cosine:.4f} to the table's (at least {PROBE_COSINE} "
            "is the same space); check the versions of torch and transformers, or swap the table with --output.replace true"
        )


def find_cause(error: BaseException) -> BaseException:
    """Find our own error in what Ray wraps around it; what is not ours stays as it is."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        if inner is None and isinstance(cause, EmbedderError):
            return cause
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    return error


def landed(row: Row) -> Landed:
    """Read what the last stage says of a unit."""
    part = json.loads(row["part"]) if row["part"] else None
    probe = tuple(np.frombuffer(row["probe"], np.float32).tolist()) if row["probe"] else None
    return Landed(
        key=row["key"],
        part=Part(**{**part, "stats": Stats(**part["stats"])}) if part else None,
        error=row["error"],
        reasons=json.loads(row["reasons"]),
        probe=probe,
    )
