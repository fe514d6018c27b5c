"""The Ray Data graphs of a calibration: count a sample's tokens and tap its states."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import ray
from ray.data import Dataset

from embedder.core.spec import EmbeddingSpec
from embedder.pipeline.graph import actor_options, iterate
from embedder.pipeline.pool import Pool
from embedder.pipeline.tap_actor import (
    CountedRow,
    TapActor,
    TappedRow,
    TappedUnit,
    Tapping,
    Units,
    count_documents,
    make_rows,
    read_tapped,
    sum_counts,
    tokenize_documents,
)
from embedder.text.token_idf import Counts


def _start_graph(units: Units) -> Dataset:
    rows = list(make_rows(units))
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def count_units(units: Sequence[pa.Table], spec: EmbeddingSpec, tokenizer_json: str, vocab_size: int, pool: Pool) -> tuple[int, Counts]:
    """Tokenize units of DOCUMENTS; return the number of chunks, and for each token id the chunks that hold it."""
    graph = _start_graph([("fitted", unit) for unit in units]).map(
        count_documents, fn_args=(spec, tokenizer_json, vocab_size), num_cpus=pool.reader_cpus
    )
    rows: Iterator[CountedRow] = iterate(graph)
    return sum_counts(rows, vocab_size)


def tap_units(units: Units, tapping: Tapping, pool: Pool) -> Iterator[TappedUnit]:
    """Tap units; yield each as it lands, in no order."""
    graph = (
        _start_graph(units)
        .map(tokenize_documents, fn_args=(tapping,), num_cpus=pool.reader_cpus)
        .map(TapActor, fn_constructor_args=(tapping, pool), **actor_options(pool))
    )
    row: TappedRow
    for row in iterate(graph):
        yield read_tapped(row, tapping)
