"""The Ray Data graphs of a calibration: count a sample's tokens and tap its states."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from embedder.core.spec import EmbeddingSpec
from embedder.model.results import ExitStates
from embedder.pipeline.graph import actor_options, iterate
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import to_ipc
from embedder.pipeline.tap_actor import CountedRow, Kind, SampleRow, TapActor, TappedRow, Tapping, count_documents, tokenize_documents
from embedder.text.token_idf import Counts

Units = Sequence[tuple[Kind, pa.Table]]
"""DOCUMENTS of each unit, of which there are some."""


def _start_graph(units: Units) -> Dataset:
    rows = [SampleRow(number=number, documents=to_ipc(documents), kind=kind) for number, (kind, documents) in enumerate(units)]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def count_units(units: Sequence[pa.Table], spec: EmbeddingSpec, tokenizer_json: str, vocab_size: int, pool: Pool) -> tuple[int, Counts]:
    """Tokenize units of DOCUMENTS; return the number of chunks, and for each token id the chunks that hold it."""
    graph = _start_graph([("fitted", unit) for unit in units]).map(
        count_documents, fn_args=(spec, tokenizer_json, vocab_size), num_cpus=pool.reader_cpus
    )
    chunks, counts_V = 0, np.zeros(vocab_size, np.int64)
    row: CountedRow
    for row in iterate(graph):
        chunks += row["chunks"]
        counts_V += np.frombuffer(row["counts"], np.int64)
    return chunks, counts_V


def tap_units(units: Units, tapping: Tapping, pool: Pool) -> Iterator[tuple[Kind, int, ExitStates]]:
    """Tap units; yield each as it lands, in no order: its kind, how many chunks it has, and the states of these and of what was added:
    synthetic chunks, or known items and as many queries."""
    graph = (
        _start_graph(units)
        .map(tokenize_documents, fn_args=(tapping,), num_cpus=pool.reader_cpus)
        .map(TapActor, fn_constructor_args=(tapping, pool), **actor_options(pool))
    )
    row: TappedRow
    for row in iterate(graph):
        full_NW = np.frombuffer(row["full"], np.float32).reshape(-1, tapping.spec.dim)
        native = np.frombuffer(row["native"], np.float32).reshape(len(full_NW), -1)
        by_depth = dict(zip(tapping.depths, np.split(native, len(tapping.depths), axis=1), strict=True))
        states_NF = np.frombuffer(row["states"], np.float32).reshape(len(full_NW), -1)
        yield row["kind"], row["num_real"], ExitStates(states_NF, by_depth, full_NW)
