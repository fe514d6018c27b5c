"""The Ray Data graph: tasks are read into units, units are encoded on actors, parts are written. The only ray import.

One row is one unit, its tables held as Arrow IPC bytes: Ray can neither split nor merge it, an empty unit survives, and
the encoder's stage needs no batch size. A task's reader is a generator, so a unit is encoded while the next is read.
"""

import json
import logging
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from embedder.config import ComputeConfig, OutputConfig, SourceConfig
from embedder.errors import EmbedderError, ModelError
from embedder.model.encoder import Encoder
from embedder.model.runtime import set_threads
from embedder.output.parts import Folder, assemble_rows, footer_of, read_part, write_part
from embedder.schema import CHUNKS
from embedder.source.documents import SourceUnit, read_units
from embedder.spec import EmbeddingSpec
from embedder.text.chunking import chunk_documents
from embedder.text.tokenizing import load_tokenizer
from embedder.work import Part, PartName, Stats, Task

PROBE_COSINE = 0.99
"""A machine whose probe vector is further than this from the table's does not compute the table's space. bfloat16 stays above 0.998."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every stage of one run needs, sent to each worker once."""

    source: SourceConfig
    output: OutputConfig
    spec: EmbeddingSpec
    tokenizer_json: str
    metadata: pa.Schema
    probe: tuple[float, ...] | None
    """The table's probe vector, if it has one: an encoder that gives another one is refused."""


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
    if not ray.is_initialized():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = os.environ.get("RAY_ADDRESS") or "local"
        local = {"include_dashboard": False, "log_to_driver": False} if address == "local" else {}
        ray.init(address=address, logging_level="ERROR", **local)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block, and so a message to the next stage, for every row
    logging.getLogger("ray.data").setLevel(logging.ERROR)


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


def embed_units(tasks: Sequence[Task], done: Mapping[str, frozenset[str]], job: Job, pool: Pool) -> Iterator[Landed]:
    """Read, embed and write the units of all tasks; yield each as it lands, in no order.

    Units whose part is on storage already (`done`, by task key) are read past, and reported like the others.
    """
    for batch in build_graph(tasks, done, job, pool).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            yield _landed(row)


def build_graph(tasks: Sequence[Task], done: Mapping[str, frozenset[str]], job: Job, pool: Pool) -> Dataset:
    """Lay out the three stages, without running them."""
    rows = [{"task": pickle.dumps(task), "done": sorted(done.get(task.key, ()))} for task in tasks]
    shared = Shared(ray.put(job))
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .flat_map(prepare, fn_args=(shared,), num_cpus=pool.reader_cpus)
        .map(
            EncoderActor,
            fn_constructor_args=(shared, pool),
            compute=ActorPoolStrategy(min_size=pool.actors[0], max_size=pool.actors[1]),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
        )
        .map(write, fn_args=(shared,), num_cpus=pool.reader_cpus / 4)
    )


@dataclass(frozen=True, slots=True)
class Shared:
    """A reference to the job, so that a tokenizer of megabytes is not copied into every call."""

    ref: "ray.ObjectRef[Job]"


@lru_cache(maxsize=1)
def fetch_job(shared: Shared) -> Job:
    """Get the job, once a process."""
    job: Job = ray.get(shared.ref)
    return job


def prepare(row: Mapping[str, Any], shared: Shared) -> Iterator[dict[str, Any]]:
    """Stream one task's units: read, chunk, tokenize. A task that cannot be read to its end says so in its last row."""
    task, done, job = pickle.loads(row["task"]), frozenset(row["done"]), fetch_job(shared)
    tokenizer = load_tokenizer(job.tokenizer_json)
    try:
        for unit in read_units(task, job.source, job.metadata):
            name = str(PartName(task.key, task.version, unit.first_row, unit.stop_row, unit.last))
            if name in done:
                yield _prepared(task.key, name=name)
                continue
            chunks = chunk_documents(unit.documents, tokenizer, job.spec)
            yield _prepared(
                task.key,
                name=name,
                documents=to_ipc(unit.documents),
                chunks=to_ipc(chunks),
                quarantined=to_ipc(unit.quarantined),
                stats=count_unit(unit, chunks),
            )
    except EmbedderError as error:
        yield _prepared(task.key, error=str(error))


def count_unit(unit: SourceUnit, chunks: pa.Table) -> Stats:
    """Sum up a unit before it is encoded."""
    return Stats(
        documents=unit.stop_row - unit.first_row,
        quarantined=unit.quarantined.num_rows,
        chunks=chunks.num_rows,
        tokens=chunks["num_tokens"].to_numpy().sum().item(),
        truncated=chunks["truncated"].to_numpy().sum().item(),
        text_bytes=unit.documents["text"].nbytes,
    )


class EncoderActor:
    """Holds the model; set once, in the constructor."""

    def __init__(self, shared: Shared, pool: Pool) -> None:
        job = fetch_job(shared)
        set_threads(pool.threads)
        self.encoder = Encoder.load(job.spec, pool.device, pool.dtype)
        self.token_budget = pool.token_budget
        self.probe = self.encoder.probe()
        check_probe(self.probe, job.probe)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Add the vectors of the unit's chunks; the token ids have done their work and go."""
        encoded: dict[str, Any] = dict(row) | {"vectors": None, "probe": self.probe.tobytes()}
        if row["chunks"] is None:
            return encoded
        started = time.perf_counter()
        chunks = from_ipc(row["chunks"])
        token_ids = chunks["token_ids"].combine_chunks() if chunks.num_rows else pa.array([], CHUNKS.field("token_ids").type)
        result = self.encoder.encode(token_ids, self.token_budget)
        stats = replace(Stats(**json.loads(row["stats"])), padded_tokens=result.padded_tokens, encode_seconds=time.perf_counter() - started)
        return encoded | {
            "chunks": to_ipc(chunks.drop_columns(["token_ids"])),
            "vectors": result.vectors_ND.tobytes(),
            "stats": json.dumps(asdict(stats)),
        }


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


def write(row: Mapping[str, Any], shared: Shared) -> dict[str, Any]:
    """Write one unit as a part, once; describe it in a few bytes."""
    landed: dict[str, Any] = {"key": row["key"], "error": row["error"], "part": None, "reasons": "{}", "probe": row["probe"]}
    if row["name"] is None:
        return landed
    job = fetch_job(shared)
    folder = Folder(job.output.uri, job.output.storage_options)
    if row["chunks"] is None:
        part, reasons = read_part(row["name"], folder), Counter[str]()
    else:
        part, reasons = _write_unit(row, job, folder)
    return landed | {"part": json.dumps(asdict(part)), "reasons": json.dumps(reasons)}


def _write_unit(row: Mapping[str, Any], job: Job, folder: Folder) -> tuple[Part, Counter[str]]:
    documents, chunks, quarantined = from_ipc(row["documents"]), from_ipc(row["chunks"]), from_ipc(row["quarantined"])
    stats = Stats(**json.loads(row["stats"]))
    embedded = len(np.unique(chunks["document"].to_numpy()))
    assert embedded == documents.num_rows == stats.documents - stats.quarantined, (embedded, documents.num_rows, stats)
    vectors_ND = np.frombuffer(row["vectors"], np.float32).reshape(chunks.num_rows, job.spec.dim)
    rows = assemble_rows(documents, chunks, vectors_ND, job.output.store_text)
    name = PartName.parse(row["name"])
    assert name is not None, row["name"]
    part = write_part(rows, quarantined, name, footer_of(job.spec.space_id, job.spec.model_dump(), stats), folder)
    return part, Counter(quarantined["reason"].to_pylist())


def _landed(row: Mapping[str, Any]) -> Landed:
    part = json.loads(row["part"]) if row["part"] else None
    probe = tuple(np.frombuffer(row["probe"], np.float32).tolist()) if row["probe"] else None
    return Landed(
        key=row["key"],
        part=Part(**{**part, "stats": Stats(**part["stats"])}) if part else None,
        error=row["error"],
        reasons=json.loads(row["reasons"]),
        probe=probe,
    )


def _prepared(key: str, stats: Stats | None = None, **values: Any) -> dict[str, Any]:
    empty = {"name": None, "documents": None, "chunks": None, "quarantined": None, "error": None}
    return {"key": key, **empty, **values, "stats": json.dumps(asdict(stats)) if stats else None}


def to_ipc(table: pa.Table) -> bytes:
    """Serialize a table; a row of Ray Data holds it as one value."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(data: bytes) -> pa.Table:
    """Read back what to_ipc wrote."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
