"""What a CPU worker does before and after the encoder: a task's rows become prepared units, encoded units become parts.

One row is one unit, its tables held as Arrow IPC bytes. Nothing here imports torch or transformers: a reader's process
starts in a second and stays small.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.errors import EmbedderError, ModelError, SourceError
from embedder.core.plan import Plan
from embedder.core.schema import QUARANTINE
from embedder.core.units import Part, PartName, Stats, Task
from embedder.pipeline.rows import Row, StageContext, folder_of, from_ipc, to_ipc
from embedder.source.documents import SourceUnit, read_units
from embedder.source.formats.rows import EXCERPT_CHARS
from embedder.table.attempts import Attempts
from embedder.table.parts import assemble_rows, footer_of, read_part, write_part
from embedder.table.reuse import index_parts, take_reusable
from embedder.table.vectors import Codes, column_codes, from_bytes
from embedder.text.byte_estimate import chunk_counted
from embedder.text.chunking import CHUNKS

PROBE_COSINE = 0.99
"""A machine whose probe vector is further than this from the table's does not compute the table's space. bfloat16 stays above 0.998."""


def task_row(task: Task, plan: Plan) -> dict[str, Any]:
    """Pack a task, with the names of its parts that are on storage already, and of those it may take vectors from."""
    return {"task": task.to_json(), "done": sorted(plan.done.get(task.key, ())), "previous": list(plan.previous.get(task.key, ()))}


def prepare_units(row: Row, context: StageContext) -> Iterator[dict[str, Any]]:
    """Stream one task's units: read, chunk, tokenize. A task that cannot be read to its end says so in its last row.

    While a unit is made its first row is marked: one that took its worker down too often is not tried again in this run. Only
    deaths of this run count: clusters that are lost one after another have the same shards in hand, the largest, each time.
    """
    task, done = Task.from_json(row["task"]), frozenset(row["done"])
    begun = {name.rsplit("-", 2 if name.endswith("-last.parquet") else 1)[0] for name in done}
    attempts = Attempts.listed(folder_of(context))
    first_row = task.first_row
    try:
        units = stream_units(task, done, row["previous"], context)
        while True:
            name = f"{task.key}-{task.version}-{first_row:012d}"
            mark = f"{name}.read.{context.run_id}"
            number = 0 if name in begun else attempts.begin(mark)
            try:
                if number > context.max_attempts:
                    raise SourceError(
                        f"{task.shards[0].uri}: reading on from row {first_row} took its worker down {number - 1} times; "
                        "look at the records there, or run again to try anew"
                    )
                first_row, prepared = next(units, (0, None))
            except SourceError as error:
                broken = find_broken(task, context) if len(task.shards) > 1 and number <= context.max_attempts else {}
                reason = "\n".join(broken.values()) or str(error)
                yield _prepared(task.key, error=reason, broken=json.dumps(sorted(broken)))
                return
            finally:
                attempts.end(mark, number)
                attempts.forget_listed(f"{name}.read")
            if prepared is None:
                return
            yield prepared
    except EmbedderError as error:
        yield _prepared(task.key, error=str(error))


def find_broken(task: Task, context: StageContext) -> dict[str, str]:
    """Say which of a bucket's small shards cannot be read to their end, and why: a unit ends with the first of them."""
    broken = {}
    for shard in task.shards:
        try:
            for _ in read_units(Task(task.key, task.version, (shard,)), context.source, context.metadata):
                pass
        except SourceError as error:
            broken[shard.uri] = str(error)
    return broken


def stream_units(task: Task, done: frozenset[str], previous: Sequence[str], context: StageContext) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read, chunk and tokenize a task's units; with each comes the row that the next one starts at."""
    known = context.previous if context.previous is not None else index_parts(previous, folder_of(context))
    started = time.perf_counter()
    for unit in read_units(task, context.source, context.metadata):
        name = str(PartName(task.key, task.version, unit.first_row, unit.stop_row, unit.last))
        if name in done:
            yield unit.stop_row, _prepared(task.key, name=name)
            started = time.perf_counter()
            continue
        reused = take_reusable(unit.documents["content_hash"], known, folder_of(context), context.spec.quantization)
        chunks = chunk_fresh(unit.documents, reused, context)
        tables = {"documents": to_ipc(unit.documents), "chunks": to_ipc(chunks), "reused": to_ipc(reused)}
        tables["quarantined"] = to_ipc(unit.quarantined)
        stats = replace(count_unit(unit, chunks, reused), read_seconds=time.perf_counter() - started)
        yield unit.stop_row, _prepared(task.key, stats, name=name, **tables)
        started = time.perf_counter()


def check_probe(probe_D: npt.NDArray[np.float32], expected: Sequence[float] | None, advice: str) -> None:
    """Refuse what embeds and gives no numbers, or no longer the table's probe vector."""
    if not np.isfinite(probe_D).all():
        raise ModelError(f"embedding: the probe's vector holds NaN or infinity; {advice}")
    if expected is None:
        return
    wanted_D = np.asarray(expected, dtype=np.float32)
    cosine = float(probe_D @ wanted_D / (np.linalg.norm(probe_D) * np.linalg.norm(wanted_D)))
    if not cosine >= PROBE_COSINE:
        raise ModelError(
            f"embedding: the probe's vector has a cosine of {cosine:.4f} to the table's (at least {PROBE_COSINE} is the same space); "
            f"{advice}, or embed into another output.uri"
        )


def chunk_fresh(documents: pa.Table, reused: pa.Table, context: StageContext) -> pa.Table:
    """DOCUMENTS, REUSED → CHUNKS of the documents whose vectors are not known yet."""
    fresh = np.setdiff1d(np.arange(documents.num_rows), reused["document"].to_numpy())
    chunks = chunk_counted(documents.take(pa.array(fresh)), context.tokenizer_json, context.spec)
    owner = pa.array(fresh[chunks["document"].to_numpy()].astype(np.int32))
    return chunks.set_column(0, CHUNKS.field("document"), owner)


def count_unit(unit: SourceUnit, chunks: pa.Table, reused: pa.Table) -> Stats:
    """Sum up a unit before it is encoded."""
    return Stats(
        documents=unit.stop_row - unit.first_row,
        quarantined=unit.quarantined.num_rows,
        chunks=chunks.num_rows,
        tokens=chunks["num_tokens"].to_numpy().sum().item(),
        truncated=chunks["truncated"].to_numpy().sum().item(),
        reused=len(np.unique(reused["document"].to_numpy())),
        text_bytes=unit.documents["text"].nbytes,
    )


def write_unit(row: Row, context: StageContext) -> dict[str, Any]:
    """Write one unit as a part, once; describe it in a few bytes. A part that is there already is described as it is."""
    nothing = {"part": None, "reasons": "{}", "attempt": 0, "tokens": 0}
    landed: dict[str, Any] = {"key": row["key"], "error": row["error"], "broken": row["broken"], "probe": row["probe"], **nothing}
    if row["name"] is None:
        return landed
    if row["chunks"] is None:
        return landed | {"part": json.dumps(asdict(read_part(row["name"], folder_of(context))))}
    part, reasons = _write_encoded(row, context)
    if row["attempt"] > context.max_attempts:
        Attempts(folder_of(context)).forget(row["name"])
    elif row["attempt"]:
        Attempts(folder_of(context)).end(row["name"], row["attempt"])
    figures = {"attempt": row["attempt"], "tokens": part.stats.tokens}
    return landed | {"part": json.dumps(asdict(part)), "reasons": json.dumps(reasons), **figures}


def _write_encoded(row: Row, context: StageContext) -> tuple[Part, Counter[str]]:
    started = time.perf_counter()
    documents, quarantined = from_ipc(row["documents"]), from_ipc(row["quarantined"])
    chunks, codes_NX = merge_reused(row, context)
    stats = Stats(**json.loads(row["stats"]))
    if row["given_up"]:
        documents, quarantined, chunks = quarantine_documents(row["given_up"], row["reasons"], documents, quarantined, chunks)
        stats = replace(stats, quarantined=quarantined.num_rows)
    embedded = len(np.unique(chunks["document"].to_numpy()))
    assert embedded == documents.num_rows == stats.documents - stats.quarantined, (embedded, documents.num_rows, stats)
    rows = assemble_rows(documents, chunks, codes_NX, context.output.store_text)
    name = PartName.parse(row["name"])
    assert name is not None, row["name"]
    part = write_part(rows, quarantined, name, footer_of(context.spec, stats, context.ranges), folder_of(context))
    timed = replace(part.stats, write_seconds=time.perf_counter() - started)
    return replace(part, stats=timed), Counter(quarantined["reason"].to_pylist())


def quarantine_documents(
    given_up: Sequence[int], reasons: Sequence[str], documents: pa.Table, quarantined: pa.Table, chunks: pa.Table
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Move documents that cannot be encoded, of which there are no chunks, to the quarantine, each with its reason."""
    moved = documents.take(pa.array(given_up))
    columns: dict[str, Any] = {name: moved[name] for name in ("shard", "row", "doc_id")}
    columns["reason"] = list(reasons)
    columns["excerpt"] = pc.utf8_slice_codeunits(moved["text"], 0, EXCERPT_CHARS)
    quarantined = pa.concat_tables([quarantined, pa.table(columns).select(QUARANTINE.names).cast(QUARANTINE)])
    kept = np.setdiff1d(np.arange(documents.num_rows), given_up)
    owner = pa.array(np.searchsorted(kept, chunks["document"].to_numpy()).astype(np.int32))
    return documents.take(pa.array(kept)), quarantined, chunks.set_column(0, CHUNKS.field("document"), owner)


def merge_reused(row: Row, context: StageContext) -> tuple[pa.Table, Codes]:
    """Put chunks that were encoded and chunks that were known back into the order of the source, each with its vector."""
    fresh, reused = from_ipc(row["chunks"]), from_ipc(row["reused"])
    codes_NX = from_bytes(row["codes"], context.spec)
    if not reused.num_rows:
        return fresh, codes_NX
    known_NX = column_codes(reused["embedding"])
    # whether a known text was cut at max_tokens was not kept: its span says so, and is asked where chunking is off
    cut = pa.array(np.full(reused.num_rows, not context.spec.chunking))
    known = reused.drop_columns(["embedding"]).append_column("truncated", cut).select(fresh.schema.names)
    chunks = pa.concat_tables([fresh, known])
    order = pc.sort_indices(chunks, [("document", "ascending"), ("chunk", "ascending")])
    return chunks.take(order), np.concatenate([codes_NX, known_NX])[order.to_numpy()]


def _prepared(key: str, stats: Stats | None = None, **values: Any) -> dict[str, Any]:
    empty = {"name": None, "documents": None, "chunks": None, "reused": None, "quarantined": None, "error": None, "broken": "[]"}
    return {"key": key, **empty, **values, "stats": json.dumps(asdict(stats)) if stats else None}
