"""How large a cluster has to be: from a run that was measured, and the rate of a GPU that is given, to units, CPUs, memory, requests.

A queueing estimate. CPU times are those of the machine that was measured; nothing here knows how fast a GPU is.
"""

import heapq
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from embedder.core.errors import CommitError
from embedder.core.storage import READ_BLOCK_BYTES
from embedder.source.documents import SLICE_BYTES

MOST_ROWS_PER_UNIT = 1_000_000
UNITS_PER_ENCODER = 20
"""At least so many, where the corpus has them: the last ones leave at most a twentieth of the run with idle encoders."""
IN_FLIGHT_PER_ENCODER = 2
"""Units that Ray hands to an actor at once: the one it works on, and the next."""
USABLE_STORE_SHARE = 0.5
"""Of the object store, what Ray Data lets its stages fill before it holds the readers back."""
BUSY_SHARE = 0.8
"""Of readers and writers: the rest is for what no average knows."""
WRITER_CPUS = 0.25
SPREAD = 0.3
"""Standard deviation of a unit's times, as a share of their mean, in the simulation."""
DRIVER_SECONDS_PER_UNIT = 0.025
"""Measured on 2 cores: what a unit costs the driver's process on its way through three stages."""
DRIVER_SHARE = 0.5
"""Of its time, what units may take at most: smaller ones would keep the driver busier than the GPUs."""
DRIVER_BYTES = 600e6
DRIVER_BYTES_PER_PART = 4_000
"""A guess on the safe side: a part itself is 540 bytes, and its commit takes some copies of what it says."""
REQUESTS_PER_UNIT = 6
"""Counted before a real server: puts of the part and two marks of attempts, deletes of these, a look at the part before the commit."""
REQUESTS_PER_TASK = 7
"""Counted likewise, without the data itself: a listing and a last mark, and what tells that a shard is there and stays as it was."""
_TOKEN_ID_BYTES, _CHUNK_BYTES, _DOCUMENT_BYTES = 4, 60, 160
"""Of what is held between stages, beside text and vectors: ids, offsets, hashes, the shard's name."""


@dataclass(frozen=True, slots=True)
class Document:
    """The mean document of a run that was measured: what it holds, and the seconds of a CPU that it took."""

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
    """Which run, in words."""

    @property
    def prepared_bytes(self) -> float:
        """What it takes in the object store between reader and encoder; behind the encoder ids are gone and vectors there."""
        return self.text_bytes + _TOKEN_ID_BYTES * self.tokens + _CHUNK_BYTES * self.chunks + _DOCUMENT_BYTES

    @property
    def encoded_bytes(self) -> float:
        """What it takes between encoder and writer."""
        return self.prepared_bytes - _TOKEN_ID_BYTES * self.tokens + self.vector_bytes * self.chunks


@dataclass(frozen=True, slots=True)
class Fleet:
    """The GPUs there would be, and what is known of them."""

    gpus: int
    gpus_per_node: int
    tokens_per_second: float
    """Of one GPU."""
    documents: float
    """To embed."""
    unit_seconds: float
    """That a unit should keep a GPU busy."""


@dataclass(frozen=True, slots=True)
class Size:
    """What the fleet needs."""

    rows_per_unit: int
    num_units: int
    unit_seconds: tuple[float, float, float]
    """Reading, encoding, writing one."""
    readers: float
    writers: float
    store_bytes_per_node: float
    requests_per_second: float
    driver_share: float
    """Of the driver's one process, while all GPUs are busy."""
    driver_bytes: float
    hours: float
    """Of a simulated run, its start and end included, machines and models being there."""
    busy_share: float
    """Of the GPUs in that run."""

    def cpus_per_gpu(self, gpus: int) -> float:
        """Count a CPU for each reader and encoder, and a quarter for a writer, which mostly waits."""
        return 1 + (self.readers + WRITER_CPUS * self.writers) / gpus


def learn_document(records: Iterable[Mapping[str, Any]]) -> Document:
    """Take the run that embedded the most: a refresh of a few documents says little."""
    runs = [each for each in records if each.get("source_bytes") and not each["stats"]["reused"] and each["stats"]["tokens"]]
    if not runs:
        raise CommitError("no run of this table read and embedded whole shards yet; run jobs.embed on a sample of the corpus first")
    run = max(runs, key=lambda each: int(each["stats"]["tokens"]))
    stats, spec = run["stats"], run["spec"]
    count = stats["documents"] - stats["quarantined"]
    bytes_per_component = {"none": 4, "int8": 1, "binary": 1 / 8}[spec["quantization"]]
    return Document(
        tokens=stats["tokens"] / count,
        chunks=stats["chunks"] / count,
        text_bytes=stats["text_bytes"] / count,
        source_bytes=run["source_bytes"] / count,
        part_bytes=run["bytes_added"] / count,
        read_seconds=stats["read_seconds"] / count,
        write_seconds=stats["write_seconds"] / count,
        vector_bytes=spec["dim"] * bytes_per_component,
        basis=f"run {run['run_id']}: {count:,} documents, {stats['tokens']:,} tokens",
    )


def size_fleet(document: Document, fleet: Fleet) -> Size:
    """Choose a unit and count what keeps the GPUs busy with it."""
    rate = fleet.tokens_per_second / document.tokens
    least = rate * fleet.gpus * DRIVER_SECONDS_PER_UNIT / DRIVER_SHARE
    wanted = min(rate * fleet.unit_seconds, fleet.documents / fleet.gpus / UNITS_PER_ENCODER)
    rows_per_unit = round_down(min(max(1.0, least, wanted), MOST_ROWS_PER_UNIT))
    num_units = math.ceil(fleet.documents / rows_per_unit)
    seconds = (rows_per_unit * document.read_seconds, rows_per_unit / rate, rows_per_unit * document.write_seconds)
    units_per_second = fleet.gpus / seconds[1]
    readers, writers = (units_per_second * each / BUSY_SHARE for each in (seconds[0], seconds[2]))
    held = readers * document.prepared_bytes + fleet.gpus * IN_FLIGHT_PER_ENCODER * document.prepared_bytes
    held += (fleet.gpus + writers) * document.encoded_bytes
    nodes = math.ceil(fleet.gpus / fleet.gpus_per_node)
    source_rate = fleet.gpus * rate * document.source_bytes
    requests = units_per_second * REQUESTS_PER_UNIT + source_rate * (1 / READ_BLOCK_BYTES + REQUESTS_PER_TASK / SLICE_BYTES)
    hours, busy = simulate(num_units, fleet.gpus, math.ceil(readers), seconds[:2])
    return Size(
        rows_per_unit=rows_per_unit,
        num_units=num_units,
        unit_seconds=seconds,
        readers=readers,
        writers=writers,
        store_bytes_per_node=held * rows_per_unit / nodes / USABLE_STORE_SHARE,
        requests_per_second=requests,
        driver_share=units_per_second * DRIVER_SECONDS_PER_UNIT,
        driver_bytes=DRIVER_BYTES + num_units * DRIVER_BYTES_PER_PART,
        hours=hours,
        busy_share=busy,
    )


def describe_size(document: Document, fleet: Fleet, size: Size) -> list[tuple[str, str]]:
    """Say it to a person: first what was measured, then what was given, then what follows."""
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
        ("driver", f"{size.driver_share:.0%} of a CPU, {size.driver_bytes / 1e9:,.1f} GB"),
        ("a run", f"{size.hours:,.1f} h, GPUs busy {size.busy_share:.0%} of it, simulated; without the start of machines and models"),
    ]


def simulate(num_units: int, encoders: int, readers: int, seconds: tuple[float, float], seed: int = 0) -> tuple[float, float]:
    """Run units through readers, the driver and encoders, each time drawn around its mean; give hours, and the encoders' busy share.

    A reader starts a unit only while fewer are waiting than the encoders take at once.
    """
    draw = random.Random(seed)
    read_times, encode_times = ([max(0.05, draw.gauss(1, SPREAD)) * each for _ in range(num_units)] for each in seconds)
    reading = read_times[:readers]
    heapq.heapify(reading)
    free = [0.0] * encoders
    driver, starts, end = 0.0, [], 0.0
    for number in range(num_units):
        read = heapq.heappop(reading)
        driver = max(driver, read) + DRIVER_SECONDS_PER_UNIT
        starts.append(max(driver, heapq.heappop(free)))
        heapq.heappush(free, starts[-1] + encode_times[number])
        end = max(end, starts[-1] + encode_times[number])
        if number + readers < num_units:
            waited_for = starts[number - encoders] if number >= encoders else 0.0
            heapq.heappush(reading, max(read, waited_for) + read_times[number + readers])
    return end / 3600, sum(encode_times) / end / encoders


def round_down(number: float) -> int:
    """Cut to two digits, for a setting that a person will read."""
    unit: int = 10 ** max(0, len(str(int(number))) - 2)
    return int(number / unit) * unit
