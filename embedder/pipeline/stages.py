"""The CPU stages: a task's rows become prepared units, and encoded units become parts.

One row is one unit. This module imports neither torch nor transformers, so a reader's process starts in a second and stays small.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.context import cover_context, drop_context
from embedder.core.errors import EmbedderError, ModelError, SourceError
from embedder.core.plan import Plan
from embedder.core.schema import QUARANTINE
from embedder.core.storage import Location
from embedder.core.units import Part, PartName, Stats, Task
from embedder.pipeline.rows import (
    EncodedRow,
    EncodedUnit,
    LandedRow,
    PreparedRow,
    PreparedUnit,
    ReasonCount,
    StageContext,
    TaskRow,
    TasksRow,
    from_ipc,
    to_ipc,
)
from embedder.source.documents import SourceUnit, read_units
from embedder.source.formats.rows import EXCERPT_CHARS
from embedder.table.attempts import Attempts
from embedder.table.parts import assemble_rows, footer_of, quarantine_file, read_batches, read_part, write_part
from embedder.table.reuse import open_known, take_known
from embedder.table.vectors import Codes, column_codes, from_bytes
from embedder.text.byte_estimate import chunk_counted
from embedder.text.chunking import CHUNKS

PROBE_COSINE = 0.99
"""Lowest cosine between a machine's probe vector and the table's for both to be of one space. bfloat16 stays above 0.998."""


def task_row(task: Task, plan: Plan) -> TaskRow:
    """Return the row of a task. Plain values only: reading them on a worker can run no code."""
    return {"task": task.fields, "done": sorted(plan.done.get(task.key, ())), "previous": list(plan.previous.get(task.key, ()))}


def tasks_row(tasks: Iterable[Task], plan: Plan, size: int = 1) -> TasksRow:
    """Return the row of some tasks, whose reader yields so many units a row."""
    return {"tasks": json.dumps([task_row(task, plan) for task in tasks]).encode(), "size": size}


def prepare_tasks(row: TasksRow, context: StageContext) -> Iterator[PreparedRow]:
    """Yield the prepared units of some tasks, one task after the other; see `prepare_units`."""
    for each in json.loads(row["tasks"]):
        yield from prepare_units(each, context)


def prepare_units(row: TaskRow, context: StageContext) -> Iterator[PreparedRow]:
    """Yield one task's units, read, chunked and tokenized; the last row of a task that cannot be read to its end holds the error.

    Each unit is marked by its first row while it is prepared. A unit that killed its worker too often is not tried again in this run.
    Deaths in earlier runs do not count: whenever a cluster is lost, the largest shards are in progress.
    """
    task, done = Task.from_fields(row["task"]), frozenset(row["done"])
    started = {name.rsplit("-", 2 if name.endswith("-last.parquet") else 1)[0] for name in done}
    attempts = Attempts.listed(context.folder)
    first_row = task.first_row
    try:
        units = stream_units(task, done, row["previous"], context)
        while True:
            name = f"{task.key}-{task.version}-{first_row:012d}"
            mark = f"{name}.read.{context.run_id}"
            number = 0 if name in started else attempts.begin(mark)
            try:
                if number > context.max_attempts:
                    raise SourceError(_describe_deaths(task.shards[0].uri, first_row, number - 1))
                first_row, prepared = next(units, (0, None))
            except SourceError as error:
                broken = find_broken(task, context) if len(task.shards) > 1 and number <= context.max_attempts else {}
                yield _failed(task.key, "\n".join(broken.values()) or str(error), sorted(broken))
                return
            finally:
                attempts.end(mark, number)
                attempts.forget_listed(f"{name}.read")
            if prepared is None:
                return
            yield prepared
    except EmbedderError as error:
        yield _failed(task.key, str(error))


def _describe_deaths(uri: str, row: int, count: int) -> str:
    return f"{uri}: reading on from row {row} took its worker down {count} times; look at the records there, or run again to retry"


def _failed(key: str, error: str, broken: Sequence[str] = ()) -> PreparedRow:
    return {"key": key, "name": None, "error": error, "broken": list(broken), "unit": None}


def find_broken(task: Task, context: StageContext) -> dict[str, str]:
    """Return the errors of a bucket's unreadable shards by uri; the unit itself ended at the first of them."""
    broken = {}
    for shard in task.shards:
        try:
            for _ in read_units(Task(task.key, task.version, (shard,)), context.source, context.metadata):
                pass
        except SourceError as error:
            broken[shard.uri] = str(error)
    return broken


def stream_units(task: Task, done: frozenset[str], previous: Sequence[str], context: StageContext) -> Iterator[tuple[int, PreparedRow]]:
    """Yield a task's prepared units, each with the first row of the next one."""
    known = open_known(previous, context.index, context.folder)
    started = time.perf_counter()
    for read in read_units(task, context.source, context.metadata):
        unit = replace(read, documents=cover_context(read.documents, context.spec))
        name = str(PartName(task.key, task.version, unit.first_row, unit.stop_row, unit.last))
        prepared: PreparedRow = {"key": task.key, "name": name, "error": None, "broken": [], "unit": None}
        if name not in done:
            reused = take_known(unit.documents["content_hash"], known, context.folder, context.spec.quantization)
            stats = replace(count_unit(unit, reused), read_seconds=time.perf_counter() - started)
            whole: PreparedUnit = {
                "documents": to_ipc(unit.documents),
                "chunks": b"",
                "reused": to_ipc(reused),
                "quarantined": to_ipc(unit.quarantined),
                "stats": asdict(stats),
            }
            prepared["unit"] = whole if task.cut_by_encoders else cut_unit(whole, context)
        yield unit.stop_row, prepared
        started = time.perf_counter()


def cut_unit(unit: PreparedUnit, context: StageContext) -> PreparedUnit:
    """Chunk and tokenize the documents of a unit that have no reusable vectors."""
    started = time.perf_counter()
    chunks = chunk_fresh(from_ipc(unit["documents"]), from_ipc(unit["reused"]), context)
    stats = Stats(**unit["stats"]) + count_chunks(chunks)
    return {**unit, "chunks": to_ipc(chunks), "stats": asdict(stats + Stats(read_seconds=time.perf_counter() - started))}


def cut_row(row: PreparedRow, context: StageContext, attempts: Attempts) -> PreparedRow:
    """Cut the unit of a row whose reader left it whole, marked as a reader marks it; a unit that takes its workers down fails its task."""
    unit = row["unit"]
    if not unit or unit["chunks"]:
        return row
    mark = f"{row['name']}.cut.{context.run_id}"
    number = attempts.begin(mark)
    try:
        if number > context.max_attempts:
            (first,) = from_ipc(unit["documents"]).select(["shard", "row"]).slice(0, 1).to_pylist()
            raise SourceError(_describe_deaths(first["shard"], first["row"], number - 1))
        return {**row, "unit": cut_unit(unit, context)}
    except EmbedderError as error:
        return _failed(row["key"], str(error))
    finally:
        attempts.end(mark, number)
        attempts.forget_listed(f"{row['name']}.cut")  # of runs whose cluster was lost


def check_probe(probe_D: npt.NDArray[np.float32], expected: Sequence[float] | None, advice: str) -> None:
    """Raise ModelError if a probe vector is not finite, or is not the table's."""
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
    """DOCUMENTS, REUSED → CHUNKS of the documents without reusable vectors."""
    fresh = np.setdiff1d(np.arange(documents.num_rows), reused["document"].to_numpy())
    chunks = chunk_counted(documents.take(pa.array(fresh)), context.tokenizer_json, context.spec)
    return _set_documents(chunks, fresh[chunks["document"].to_numpy()])


def _set_documents(chunks: pa.Table, document_N: npt.NDArray[np.int64]) -> pa.Table:
    """Replace the column `document`, the row of each chunk's document."""
    return chunks.set_column(0, CHUNKS.field("document"), pa.array(document_N.astype(np.int32)))


def count_chunks(chunks: pa.Table) -> Stats:
    """Return the figures of chunks to be encoded."""
    tokens, truncated = (chunks[name].to_numpy().sum().item() for name in ("num_tokens", "truncated"))
    return Stats(chunks=chunks.num_rows, tokens=tokens, truncated=truncated)


def count_unit(unit: SourceUnit, reused: pa.Table) -> Stats:
    """Return the figures of a unit before it is cut."""
    return Stats(
        documents=unit.stop_row - unit.first_row,
        quarantined=unit.quarantined.num_rows,
        filtered=unit.stop_row - unit.first_row - unit.quarantined.num_rows - unit.documents.num_rows,
        reused=len(np.unique(reused["document"].to_numpy())),
        chunks_reused=reused.num_rows,
        tokens_reused=reused["num_tokens"].to_numpy().sum().item(),
        text_bytes=unit.documents["text"].nbytes,
    )


def write_unit(row: EncodedRow, context: StageContext) -> LandedRow:
    """Write one unit as a part and describe it in a few bytes; a part that already exists is described as it is on storage."""
    landed: LandedRow = {"key": row["key"], "part": None, "error": row["error"], "broken": row["broken"], "reasons": [],
                         "probe": row["probe"], "attempt": 0, "tokens": 0, "sample": b""}  # fmt: skip
    name, unit = row["name"], row["unit"]
    if name is None:
        return landed
    if unit is None:
        part = read_part(name, context.folder)
        return {**landed, "part": asdict(part), "reasons": _to_list(read_reasons(part, context.folder))}
    part, reasons = _write_encoded(name, unit, context)
    if unit["attempt"] > context.max_attempts:
        Attempts(context.folder).forget(name)
    elif unit["attempt"]:
        Attempts(context.folder).end(name, unit["attempt"])
    landed["reasons"] = _to_list(reasons)
    return {**landed, "part": asdict(part), "attempt": unit["attempt"], "tokens": part.stats.tokens, "sample": unit["sample"]}


def _to_list(reasons: Counter[str]) -> list[ReasonCount]:
    return [{"reason": reason, "count": count} for reason, count in reasons.items()]


def read_reasons(part: Part, folder: Location) -> Counter[str]:
    """Read the reasons of a part's quarantined records."""
    if not part.quarantine_bytes:
        return Counter()
    return Counter(reason for rows in read_batches(quarantine_file(folder, part.name), ["reason"]) for reason in rows["reason"].to_pylist())


def _write_encoded(name: str, unit: EncodedUnit, context: StageContext) -> tuple[Part, Counter[str]]:
    started = time.perf_counter()
    documents, quarantined = drop_context(from_ipc(unit["documents"])), from_ipc(unit["quarantined"])
    chunks, codes_NX = merge_reused(unit, context)
    stats = Stats(**unit["stats"])
    if unit["rejected"]:
        documents, quarantined, chunks = quarantine_documents(unit["rejected"], unit["reasons"], documents, quarantined, chunks)
        stats = replace(stats, quarantined=quarantined.num_rows)
    embedded = len(np.unique(chunks["document"].to_numpy()))
    assert embedded == documents.num_rows == stats.documents - stats.quarantined - stats.filtered, (embedded, documents.num_rows, stats)
    rows = assemble_rows(documents, chunks, codes_NX, context.output.store_text)
    parsed = PartName.parse(name)
    assert parsed is not None, name
    part = write_part(rows, quarantined, parsed, footer_of(context.spec, stats, context.ranges), context.folder)
    timed = replace(part.stats, write_seconds=time.perf_counter() - started)
    return replace(part, stats=timed), Counter(quarantined["reason"].to_pylist())


def quarantine_documents(
    rejected: Sequence[int], reasons: Sequence[str], documents: pa.Table, quarantined: pa.Table, chunks: pa.Table
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Move documents without chunks to the quarantine, each with its reason."""
    moved = documents.take(pa.array(rejected))
    columns: dict[str, Any] = {name: moved[name] for name in ("shard", "row", "doc_id")}
    columns["reason"] = list(reasons)
    columns["excerpt"] = pc.utf8_slice_codeunits(moved["text"], 0, EXCERPT_CHARS)
    quarantined = pa.concat_tables([quarantined, pa.table(columns).select(QUARANTINE.names).cast(QUARANTINE)])
    kept = np.setdiff1d(np.arange(documents.num_rows), rejected)
    chunks = _set_documents(chunks, np.searchsorted(kept, chunks["document"].to_numpy()))
    return documents.take(pa.array(kept)), quarantined, chunks


def merge_reused(unit: EncodedUnit, context: StageContext) -> tuple[pa.Table, Codes]:
    """Return encoded and reused chunks in the order of the source, and their vectors."""
    fresh, reused = from_ipc(unit["chunks"]), from_ipc(unit["reused"])
    codes_NX = from_bytes(unit["codes"], context.spec)
    if not reused.num_rows:
        return fresh, codes_NX
    known_NX = column_codes(reused["embedding"])
    # tables do not record truncation: marked as truncated, a text without chunking is cut by its span
    truncated = pa.array(np.full(reused.num_rows, not context.spec.chunking))
    known = reused.drop_columns(["embedding"]).append_column("truncated", truncated).select(fresh.schema.names)
    chunks = pa.concat_tables([fresh, known])
    order = pc.sort_indices(chunks, [("document", "ascending"), ("chunk", "ascending")])
    return chunks.take(order), np.concatenate([codes_NX, known_NX])[order.to_numpy()]
