"""Figures of a measured run and the rate of a GPU → the cluster that keeps the GPUs busy: units, CPUs, memory, requests.

CPU times are those of the measured machine; the rate of a GPU is an input.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from embedder.core.errors import CommitError
from embedder.core.storage import READ_BLOCK_BYTES
from embedder.pipeline.pool import UNIT_ROWS, fill_row
from embedder.source.documents import SLICE_BYTES

MOST_ROWS_PER_UNIT = 1_000_000
UNITS_PER_ENCODER = 20
"""Lower bound, if the corpus allows: encoders are then idle for at most a twentieth of the run at its end."""
IN_FLIGHT_PER_ENCODER = 2
"""Rows that Ray hands to an actor at once: the current one and the next."""
USABLE_STORE_SHARE = 0.5
"""Share of the object store that Ray Data fills before it holds the readers back."""
BUSY_SHARE = 0.8
"""Planned share of busy time of readers and writers, which leaves a margin for units that are larger than average."""
WRITER_CPUS = 0.25
DRIVER_SECONDS_PER_ROW = 0.025
"""Driver time for the way of one of Ray's rows through three stages, measured on 2 cores. For many GPUs a row holds several units."""
DRIVER_SHARE = 0.5
"""Largest share of the driver's time: smaller units would keep the driver busier than the GPUs."""
DRIVER_BYTES = 600e6
DRIVER_BYTES_PER_PART = 4_000
"""A safe guess: a part itself takes 540 bytes, and its commit copies them some times."""
REQUESTS_PER_UNIT = 6
"""Counted at a real server: put the part, put and delete two attempt marks, look at the part before the commit."""
REQUESTS_PER_TASK = 7
"""Counted likewise, without the data itself: list and mark, and check that the shard is there and unchanged."""
_TOKEN_ID_BYTES, _CHUNK_BYTES, _DOCUMENT_BYTES = 4, 60, 160
"""Held between stages besides text and vectors: ids, offsets, hashes, the shard's name."""


@dataclass(frozen=True, slots=True)
class Document:
    """The mean document of a measured run, and the CPU seconds that it took."""

    tokens: float
    chunks: float
    text_bytes: float
    source_bytes: float
    part_bytes: float
    read_seconds: float
    """Reading, chunking, tokenizing."""
    write_seconds: float
    vector_bytes: float
    """Of one chunk."""
    basis: str

    @property
    def prepared_bytes(self) -> float:
        """Bytes in the object store between reader and encoder."""
        return self.text_bytes + _TOKEN_ID_BYTES * self.tokens + _CHUNK_BYTES * self.chunks + _DOCUMENT_BYTES

    @property
    def encoded_bytes(self) -> float:
        """Bytes between encoder and writer: vectors instead of token ids."""
        return self.prepared_bytes - _TOKEN_ID_BYTES * self.tokens + self.vector_bytes * self.chunks


@dataclass(frozen=True, slots=True)
class Fleet:
    """The GPUs to plan for, and their work."""

    gpus: int
    gpus_per_node: int
    tokens_per_second: float
    """Of one GPU."""
    documents: float
    unit_seconds: float
    """GPU time that a unit should take."""


@dataclass(frozen=True, slots=True)
class Size:
    """The needs of a fleet."""

    rows_per_unit: int
    num_units: int
    units_per_row: int
    """Until a run nears its end."""
    unit_seconds: tuple[float, float, float]
    """To read, encode and write one."""
    readers: float
    writers: float
    store_bytes_per_node: float
    requests_per_second: float
    driver_share: float
    """Of the driver's one process, while all GPUs are busy."""
    driver_bytes: float
    hours: float
    """Of the run, without the start of machines and models."""
    busy_share: float
    """Of the GPUs in that time."""

    def cpus_per_gpu(self, gpus: int) -> float:
        """Count a CPU for each reader and encoder, and a quarter for a writer, which mostly waits."""
        return 1 + (self.readers + WRITER_CPUS * self.writers) / gpus


def learn_document(records: Iterable[Mapping[str, Any]]) -> Document:
    """Return the mean document of the run that embedded the most; CommitError if no run embedded whole shards."""
    runs = [each for each in records if each.get("source_bytes") and not each["stats"]["reused"] and each["stats"]["tokens"]]
    if not runs:
        raise CommitError("no run of this table read and embedded whole shards yet; run jobs.embed on a sample of the corpus first")
    run = max(runs, key=lambda each: int(each["stats"]["tokens"]))
    stats, spec = run["stats"], run["spec"]
    count = stats["documents"] - stats["quarantined"] - stats.get("filtered", 0)
    bytes_per_component = {"none": 4, "int8": 1, "binary": 1 / 8}[spec["quantization"]]
    return Document(
        **{name: stats[name] / count for name in ("tokens", "text_bytes", "read_seconds", "write_seconds")},
        chunks=(stats["chunks"] + stats.get("chunks_reused", 0)) / count,
        source_bytes=run["source_bytes"] / count,
        part_bytes=run["bytes_added"] / count,
        vector_bytes=spec["dim"] * bytes_per_component,
        basis=f"run {run['run_id']}: {count:,} documents, {stats['tokens']:,} tokens",
    )


def size_fleet(document: Document, fleet: Fleet) -> Size:
    """Choose the size of a unit, and count what keeps the GPUs busy with it."""
    rate = fleet.tokens_per_second / document.tokens
    fill = partial(fill_row, fleet.gpus, int(fleet.documents * document.source_bytes))
    least = rate * fleet.gpus * DRIVER_SECONDS_PER_ROW / fill(UNIT_ROWS) / DRIVER_SHARE
    wanted = min(rate * fleet.unit_seconds, fleet.documents / fleet.gpus / UNITS_PER_ENCODER)
    rows_per_unit = round_down(min(max(1.0, least, wanted), MOST_ROWS_PER_UNIT))
    units_per_row, num_units = fill(rows_per_unit), math.ceil(fleet.documents / rows_per_unit)
    driver_seconds = DRIVER_SECONDS_PER_ROW / units_per_row
    seconds = (rows_per_unit * document.read_seconds, rows_per_unit / rate, rows_per_unit * document.write_seconds)
    units_per_second = fleet.gpus / seconds[1]
    readers, writers = (units_per_second * each / BUSY_SHARE for each in (seconds[0], seconds[2]))
    held = (readers + fleet.gpus * IN_FLIGHT_PER_ENCODER) * document.prepared_bytes + (fleet.gpus + writers) * document.encoded_bytes
    source_rate = fleet.gpus * rate * document.source_bytes
    requests = units_per_second * REQUESTS_PER_UNIT + source_rate * (1 / READ_BLOCK_BYTES + REQUESTS_PER_TASK / SLICE_BYTES)
    workers = (math.ceil(readers), fleet.gpus, math.ceil(writers), 1)
    run_seconds = estimate_seconds(num_units, (*seconds, driver_seconds), workers) + (units_per_row - 1) * seconds[0]
    return Size(
        rows_per_unit=rows_per_unit,
        num_units=num_units,
        units_per_row=units_per_row,
        unit_seconds=seconds,
        readers=readers,
        writers=writers,
        store_bytes_per_node=held * rows_per_unit * units_per_row / math.ceil(fleet.gpus / fleet.gpus_per_node) / USABLE_STORE_SHARE,
        requests_per_second=requests,
        driver_share=units_per_second * driver_seconds,
        driver_bytes=DRIVER_BYTES + num_units * DRIVER_BYTES_PER_PART,
        hours=run_seconds / 3600,
        busy_share=num_units * seconds[1] / run_seconds / fleet.gpus,
    )


def estimate_seconds(num_units: int, stage_seconds: Sequence[float], workers: Sequence[int]) -> float:
    """Return the time of a pipeline: all units at the rate of its slowest stage, and one unit through all stages to fill and drain it.

    With at least 4 units for each encoder, the encoders' busy share is within 3 points of a simulated queue whose times vary by 30%.
    """
    return num_units * max(seconds / number for seconds, number in zip(stage_seconds, workers, strict=True)) + sum(stage_seconds)


def describe_size(document: Document, fleet: Fleet, size: Size) -> list[tuple[str, str]]:
    """Return names and values in words: measured, given, and the results."""
    rate = fleet.gpus * fleet.tokens_per_second / document.tokens
    read, encode, write = size.unit_seconds
    readers, writers = size.readers / fleet.gpus, size.writers / fleet.gpus
    spent = f"{1e6 * document.read_seconds:,.0f} µs of a CPU to read, {1e6 * document.write_seconds:,.0f} µs to write"
    gpus = f"{fleet.gpus:,} GPUs, {fleet.gpus_per_node} a node, {fleet.tokens_per_second:,.0f} tokens/s each"
    moved = [f"{rate * each / 1e6:,.0f} MB/s" for each in (document.source_bytes, document.part_bytes)]
    return [
        ("measured", document.basis),
        ("a document", f"{document.tokens:,.0f} tokens, {document.chunks:.2f} chunks, {document.text_bytes:,.0f} bytes of text; {spent}"),
        ("given", f"{gpus}; {fleet.documents:,.0f} documents"),
        ("unit", f"source.rows_per_unit={size.rows_per_unit}: {read:,.1f} s to read, {encode:,.1f} s to encode, {write:,.1f} s to write"),
        ("parts", f"{size.num_units:,} of {size.rows_per_unit * document.part_bytes / 1e6:,.1f} MB"),
        ("CPUs", f"{size.cpus_per_gpu(fleet.gpus):,.1f} a GPU: {readers:,.2f} readers, {writers:,.2f} writers, 1 for the encoder"),
        ("object store", f"{size.store_bytes_per_node / 1e9:,.1f} GB a node (Ray takes 30% of its memory for that)"),
        ("storage", f"{size.requests_per_second:,.0f} requests/s; {moved[0]} in, {moved[1]} out"),
        ("driver", f"{size.driver_share:.0%} of a CPU (units in a row of Ray: {size.units_per_row}), {size.driver_bytes / 1e9:,.1f} GB"),
        ("a run", f"{size.hours:,.1f} h, GPUs busy {size.busy_share:.0%} of it, estimated; without the start of machines and models"),
    ]


def round_down(number: float) -> int:
    """Round to two significant digits, for a setting that a person reads."""
    unit: int = 10 ** max(0, len(str(int(number))) - 2)
    return int(number / unit) * unit
