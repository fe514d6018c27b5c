"""The Ray Data graph: tasks are read into units, units are encoded on actors, parts are written. The only ray import.

One row is one unit: Ray can neither split nor merge it, an empty unit survives, and the encoder's stage needs no batch
size. A task's reader is a generator, so a unit is encoded while the next one is read.
"""

import atexit
import json
import logging
import os
import signal
import string
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError
from ray.util.metrics import Counter, Gauge

from embedder.actors import EncoderActor, Pool, TapActor, Tapping
from embedder.config.compute import CPU_TOKENS, ComputeConfig
from embedder.core.errors import ClusterError, ConfigError, EmbedderError
from embedder.core.plan import Plan
from embedder.core.retry import brief
from embedder.core.spec import EmbeddingSpec
from embedder.core.units import Part, Stats, Task
from embedder.model.results import ExitStates
from embedder.observe.logs import held_stderr
from embedder.observe.metrics import METRICS, RUN_LABELS, Sample
from embedder.stages import Job, Row, count_documents, from_ipc, prepare_units, task_row, to_ipc, tokenize_documents, write_unit
from embedder.text.token_idf import Counts

API_ACTORS = 4
"""Requests in flight at a time, of some seconds each, where the settings do not say."""
API_ACTOR_CPUS = 0.1
"""It waits."""
GPU_CALLS = 2
"""Units in an actor on a GPU at a time. With one, a device that takes a second for a unit of 8,192 documents waits 0.1 s for the next."""

Step = TypeVar("Step")
Stage = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function or an actor's class, and what it is called or made with besides rows."""

_RAYS_ADVICE = "\nFailed to apply UDF"
"""Ray appends to whatever a worker raises how to make Ray repeat it."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of one unit (`part`), or of one task that could not be read to its end (`error`)."""

    key: str
    part: Part | None
    error: str | None
    reasons: Mapping[str, int]
    probe: tuple[float, ...] | None
    attempt: int = 1
    """Counted from 1 over the workers that it took down, in earlier runs too."""
    tokens: int = 0
    """Embedded in this run: none of a part that was on storage already."""
    broken: tuple[str, ...] = ()
    """Of a bucket that failed: its shards that cannot be read."""


def start_ray() -> None:
    """Connect to the cluster of RAY_ADDRESS, or start a quiet local one; does nothing if this process has one."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    on_terminate = signal.getsignal(signal.SIGTERM)
    if not ray.is_initialized() and address == "local":
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with held_stderr("Set ray log level"), _ray_explained(address):
            ray.init(address=address, logging_level="ERROR", include_dashboard=False, log_to_driver=False)
        atexit.register(ray.shutdown)  # goes before Ray's own, which first sleeps for the sake of logs that are not shown here
    elif not ray.is_initialized():
        with _ray_explained(address):
            ray.init(address=address, logging_level="ERROR")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler ends the process with a core dump
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block, and so a message to the next stage, for every row
    context.raise_original_map_exception = True  # else what a worker raised comes back as text in a traceback, its class lost
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it logs as an error, it also raises


@contextmanager
def _ray_explained(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises nothing narrower, where a node does not come up in time
        raise ClusterError(f"Ray ({address}): does not come up ({brief(error)}); look at RAY_ADDRESS, load, memory and disk") from error


def choose_pool(compute: ComputeConfig, is_api: bool = False) -> Pool:
    """Fill in what the settings leave open from what the cluster has, or for an API, from what it is polite to ask at once."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if is_api:
        compute = compute.model_copy(
            update={"device": "cpu", "actors": compute.actors or (API_ACTORS, API_ACTORS), "num_cpus": compute.num_cpus or API_ACTOR_CPUS}
        )
    return lay_out_pool(compute, nodes)


def lay_out_pool(compute: ComputeConfig, nodes: Sequence[Mapping[str, float]]) -> Pool:
    """Fill in what the settings leave open from the nodes' resources; nodes of none, such as a head, do no work.

    Where workers are still to come, because a cluster grows from nothing, they are taken to have at least 4 CPUs.
    """
    node_cpus = [node["CPU"] for node in nodes if node.get("CPU")]
    num_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    device = compute.device if compute.device != "auto" else "cuda" if num_gpus else "cpu"
    most_cpus = max(node_cpus, default=4.0)
    if device == "cuda":
        if compute.backend == "openvino":
            raise ConfigError("compute.backend=openvino: runs on CPUs, and compute.device=auto takes the cluster's GPUs; set it to cpu")
        held, cpus = compute.num_gpus or 1.0, compute.num_cpus or 1.0
        fitting = int(num_gpus / held)
        actors = compute.actors or (1, max(1, fitting))
        # all at once: Ray itself adds one at a time, each once the one before has loaded its model
        initial, calls = min(actors[1], max(actors[0], fitting)), GPU_CALLS
        threads = max(1, int(cpus))
    else:
        initial, calls = None, 1
        if not node_cpus and compute.actors is None:
            raise ConfigError(
                "compute.actors: the cluster has no worker yet by which to choose; set it, as [1, 8], and compute.device to cuda "
                "if GPUs are to come"
            )
        # leaves room for one reader and two writers on a node of two cores, where they mostly wait
        full_nodes = sum(1 for each in node_cpus if each >= most_cpus)
        # where an actor lost its node, no other one has room for a second: two would leave none to the readers they wait for
        least = 0.5 if full_nodes < 2 else most_cpus / 2 + 0.01
        held, cpus = 0.0, compute.num_cpus or max(least, most_cpus - 1.5)
        actors = compute.actors or (full_nodes, full_nodes)
        threads = max(1, int(compute.num_cpus or most_cpus / max(1, actors[1] // max(1, full_nodes))))
    budget = compute.token_budget or (None if device == "cuda" else CPU_TOKENS)
    # stages that ask for the same resources would be fused into one, and the encoder would wait for the reader
    reader_cpus = 0.99 * min(1.0, most_cpus / 4)
    return Pool(device, compute.dtype, budget, actors, held, cpus, threads, reader_cpus, compute.layout, compute.backend, initial, calls)


def embed_units(tasks: Sequence[Task], plan: Plan, job: Job, pool: Pool) -> Iterator[Landed]:
    """Read, embed and write the units of all tasks; yield each as it lands, in no order.

    Units whose part is on storage already (`plan.done`) are read past, and reported like the others. What a
    worker raises comes out as it was raised there.
    """
    for row in iterate(build_graph(tasks, plan, job, pool)):
        yield landed(row)


class Reporter:
    """Hands a run's figures to Ray, whose nodes show them to Prometheus; counters are told by how much they rose."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        kinds = {"counter": Counter, "gauge": Gauge}
        # Ray takes ASCII only, and an address may hold more
        self._labels = {name: quote(value, safe=string.printable) for name, value in labels.items()}
        self._metrics = {metric.name: kinds[metric.kind](metric.name, metric.meaning, (*RUN_LABELS, *metric.labels)) for metric in METRICS}
        self._told: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def report(self, samples: Iterable[Sample]) -> None:
        """Tell the newest values."""
        for sample in samples:
            metric, labels = self._metrics[sample.name], {**self._labels, **sample.labels}
            if isinstance(metric, Gauge):
                metric.set(sample.value, labels)
                continue
            key = (sample.name, *sample.labels.values())
            if sample.value > self._told[key]:
                metric.inc(sample.value - self._told[key], labels)
                self._told[key] = sample.value


def count_units(units: Sequence[pa.Table], spec: EmbeddingSpec, tokenizer_json: str, vocab_size: int, pool: Pool) -> tuple[int, Counts]:
    """Tokenize units of DOCUMENTS; give their chunks, and for each token id the chunks that hold it."""
    rows = [{"documents": to_ipc(documents)} for documents in units]
    graph = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        count_documents, fn_args=(spec, tokenizer_json, vocab_size), num_cpus=pool.reader_cpus
    )
    chunks, counts_V = 0, np.zeros(vocab_size, np.int64)
    for row in iterate(graph):
        chunks += row["chunks"]
        counts_V += np.frombuffer(row["counts"], np.int64)
    return chunks, counts_V


def tap_units(units: Sequence[pa.Table], tapping: Tapping, pool: Pool) -> Iterator[tuple[int, ExitStates]]:
    """Tap units of DOCUMENTS, none of them empty; yield each with its number as it lands, in no order."""
    rows = [{"number": number, "documents": to_ipc(documents)} for number, documents in enumerate(units)]
    graph = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(tokenize_documents, fn_args=(tapping.spec, tapping.tokenizer_json), num_cpus=pool.reader_cpus)
        .map(TapActor, fn_constructor_args=(tapping, pool), **ask_for(pool))
    )
    for row in iterate(graph):
        full_NW = np.frombuffer(row["full"], np.float32).reshape(-1, tapping.spec.dim)
        native = np.frombuffer(row["native"], np.float32).reshape(len(full_NW), -1)
        by_depth = dict(zip(tapping.depths, np.split(native, len(tapping.depths), axis=1), strict=True))
        states_NF = np.frombuffer(row["states"], np.float32).reshape(len(full_NW), -1)
        yield row["number"], ExitStates(states_NF, by_depth, full_NW, from_ipc(row["tokens"])["token_ids"].combine_chunks())


def run_steps(steps: Callable[..., Iterator[Step]], args: Sequence[object], pool: Pool) -> Iterator[Step]:
    """Run a generator where there is what an encoder actor holds, and give what it yields as it comes."""
    remote = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus or None, max_retries=0)(steps)
    try:
        for reference in remote.remote(*args):
            yield ray.get(reference)
    except RayError as error:
        raise find_cause(error) from error


def iterate(graph: Dataset) -> Iterator[Row]:
    """Run a graph and give its rows as they come; what a worker raises comes out as it was raised there.

    Ray says on stdout when a worker dies, whatever its log settings; stdout is for what a job was asked for.
    """
    try:
        with redirect_stdout(sys.stderr):
            for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from batch.to_pylist()
    except RayError as error:
        raise find_cause(error) from error


def build_graph(tasks: Sequence[Task], plan: Plan, job: Job, pool: Pool) -> Dataset:
    """Lay out the three stages, without running them."""
    return connect([task_row(task, plan) for task in tasks], (prepare_units, (job,)), choose_actor(job, pool), (write_unit, (job,)), pool)


def connect(rows: Sequence[Row], read: Stage, embed: Stage, write: Stage, pool: Pool) -> Dataset:
    """Connect what makes rows of one, an actor, and what ends each row."""
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .flat_map(read[0], fn_args=read[1], num_cpus=pool.reader_cpus)
        .map(embed[0], fn_constructor_args=embed[1], **ask_for(pool))
        .map(write[0], fn_args=write[1], num_cpus=pool.reader_cpus / 4)
    )


def ask_for(pool: Pool) -> dict[str, Any]:
    """Say to Ray how many actors there are to be, what each holds, and how many calls each takes at a time."""
    actors = ActorPoolStrategy(
        min_size=pool.actors[0],
        max_size=pool.actors[1],
        initial_size=pool.initial,
        max_concurrent_calls_per_actor=pool.calls,
        enable_true_multi_threading=pool.calls > 1,
    )
    return {"compute": actors, "num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus or None}


def choose_actor(job: Job, pool: Pool) -> tuple[type[Any], tuple[Any, ...]]:
    """Choose what embeds, and what it is made from."""
    if not job.spec.is_api:
        return EncoderActor, (job, pool)
    from embedder.api_actor import ApiActor  # extra openai

    return ApiActor, (job,)


def find_cause(error: BaseException) -> BaseException:
    """Find our own error in what Ray wraps around it; what is not ours stays as it is."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        if inner is None and isinstance(cause, EmbedderError):
            return type(cause)(str(cause).partition(_RAYS_ADVICE)[0])
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
        broken=tuple(json.loads(row["broken"])),
        reasons=json.loads(row["reasons"]),
        probe=probe,
        attempt=row["attempt"],
        tokens=row["tokens"],
    )
