"""The Ray Data graph of a calibration: count a sample, tap it, and run its steps on workers."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from embedder.core.spec import EmbeddingSpec
from embedder.model.results import ExitStates
from embedder.pipeline.graph import ask_for, find_cause, iterate
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import to_ipc
from embedder.pipeline.tap_actor import TapActor, Tapping, count_documents, tokenize_documents
from embedder.text.token_idf import Counts

Step = TypeVar("Step")


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
        yield row["number"], ExitStates(states_NF, by_depth, full_NW)


def run_steps(steps: Callable[..., Iterator[Step]], args: Sequence[object], pool: Pool) -> Iterator[Step]:
    """Run a generator where there is what an encoder actor holds, and give what it yields as it comes."""
    remote = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus or None, max_retries=0)(steps)
    try:
        for reference in remote.remote(*args):
            yield ray.get(reference)
    except RayError as error:
        raise find_cause(error) from error
