"""Start Ray or join a cluster, and lay out the actors that its nodes have room for."""

import atexit
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from embedder.config.compute import ComputeConfig
from embedder.core.errors import ClusterError
from embedder.core.retry import one_line
from embedder.observe.logs import held_stderr
from embedder.pipeline.pool import API_ACTOR_CPUS, API_ACTORS, Pool, lay_out_pool


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
def own_data_context() -> Iterator[None]:
    """Keep the changes of start_ray to Ray Data's context inside the block, for processes with datasets of their own."""
    with DataContext.current(DataContext.get_current().copy()):
        yield


@contextmanager
def _ray_explained(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises nothing narrower, where a node does not come up in time
        raise ClusterError(f"Ray ({address}): does not come up ({one_line(error)}); look at RAY_ADDRESS, load, memory and disk") from error


def choose_pool(compute: ComputeConfig, is_api: bool = False) -> Pool:
    """Fill in what the settings leave open from what the cluster has, or for an API, from what it is polite to ask at once."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if is_api:
        compute = compute.model_copy(
            update={"device": "cpu", "actors": compute.actors or (API_ACTORS, API_ACTORS), "num_cpus": compute.num_cpus or API_ACTOR_CPUS}
        )
    return lay_out_pool(compute, nodes)
