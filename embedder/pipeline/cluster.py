"""Start Ray or join a cluster, choose the pool of actors for its nodes, and report progress as Ray metrics."""

import atexit
import logging
import os
import signal
import string
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote

import ray
from ray.data import DataContext
from ray.util.metrics import Counter, Gauge

from embedder.config.compute import ComputeConfig
from embedder.core.errors import ClusterError
from embedder.core.retry import one_line
from embedder.observe.logs import held_stderr
from embedder.observe.metrics import METRICS, RUN_LABELS, Sample
from embedder.pipeline.pool import API_ACTOR_CPUS, API_ACTORS, Pool, lay_out_pool


def start_ray() -> None:
    """Connect to the cluster of RAY_ADDRESS, or start a quiet local Ray; no effect if this process is connected."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    on_terminate = signal.getsignal(signal.SIGTERM)
    if not ray.is_initialized() and address == "local":
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with held_stderr("Set ray log level"), _ray_explained(address):
            ray.init(address=address, logging_level="ERROR", include_dashboard=False, log_to_driver=False)
        atexit.register(ray.shutdown)  # runs before Ray's own handler, which first sleeps to flush logs that are not shown
    elif not ray.is_initialized():
        with _ray_explained(address):
            ray.init(address=address, logging_level="ERROR")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's handler ends the process with a core dump
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block, and so a message to the next stage, for every row
    # pools grow while all actors are busy; Ray waits until units queue in actors, where `graph.actor_options` lets none queue
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.raise_original_map_exception = True  # otherwise a worker's error loses its class and arrives as text in a traceback
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it raises the errors that it logs


@contextmanager
def own_data_context() -> Iterator[None]:
    """Keep the changes of start_ray to Ray Data's context inside the block, for processes with datasets of their own."""
    with DataContext.current(DataContext.get_current().copy()):
        yield


@contextmanager
def _ray_explained(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises nothing narrower if a node does not start in time
        raise ClusterError(f"Ray ({address}): does not start ({one_line(error)}); check RAY_ADDRESS, load, memory and disk") from error


def choose_pool(compute: ComputeConfig, is_api: bool = False) -> Pool:
    """Return the pool for the cluster's nodes; behind an API, the default number of actors is its number of concurrent requests."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if is_api:
        compute = compute.model_copy(
            update={"device": "cpu", "actors": compute.actors or (API_ACTORS, API_ACTORS), "num_cpus": compute.num_cpus or API_ACTOR_CPUS}
        )
    return lay_out_pool(compute, nodes)


class Reporter:
    """Passes a run's figures to Ray, whose nodes expose them to Prometheus."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        kinds = {"counter": Counter, "gauge": Gauge}
        # Ray takes ASCII only; a uri may hold more
        self._labels = {name: quote(value, safe=string.printable) for name, value in labels.items()}
        self._metrics = {metric.name: kinds[metric.kind](metric.name, metric.meaning, (*RUN_LABELS, *metric.labels)) for metric in METRICS}
        self._reported: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def report(self, samples: Iterable[Sample]) -> None:
        """Set gauges to the newest values, and raise counters to them."""
        for sample in samples:
            metric, labels = self._metrics[sample.name], {**self._labels, **sample.labels}
            if isinstance(metric, Gauge):
                metric.set(sample.value, labels)
                continue
            key = (sample.name, *sample.labels.values())
            if sample.value > self._reported[key]:
                metric.inc(sample.value - self._reported[key], labels)
                self._reported[key] = sample.value
