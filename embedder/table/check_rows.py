"""Checks every byte and row of a table: the checksum, the vector's length and norm, the text, the chunk's place, the key's uniqueness."""

import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.errors import StorageError
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location, Store
from embedder.core.units import PartName
from embedder.table.checksums import checksum_of
from embedder.table.diff import NO_DIGESTS, Digests, digest_keys
from embedder.table.parts import (
    explain_damage,
    group_by_task,
    open_pages,
    part_file,
    read_checksum,
    split_batches,
    why_damaged,
)

NORM_TOLERANCE = 1e-4
"""float32 sums over some thousand components stay below 1e-6; more is damage."""


class Fault(NamedTuple):
    """A problem of one file or one task; `name` is the part, or the first part of the task."""

    name: str
    what: str


NO_CHECKSUMS: Mapping[str, str] = MappingProxyType({})
WRONG_CHECKSUM = "its bytes are not those that were written (checksum)"


def check_checksum(store: Store, checksum: str) -> Iterator[str]:
    """Yield a fault if a file's bytes do not have this checksum, or cannot be read."""
    try:
        if read_checksum(store) != checksum:
            yield WRONG_CHECKSUM
    except StorageError as error:
        yield f"cannot be read to its end ({error})"


def check_rows(
    names: Iterable[PartName],
    spec: EmbeddingSpec,
    table: Location,
    broken: Collection[str],
    checksums: Mapping[str, str] = NO_CHECKSUMS,
) -> Iterator[Fault]:
    """Yield the faults of rows, and of parts whose bytes have another checksum; parts known to be broken are skipped.

    Memory: one part, and 16 bytes for each row of one task and for each shard of the table.
    """
    owners: dict[bytes, str] = {}
    for parts in group_by_task(name for name in names if str(name) not in broken):
        keys: list[Digests] = []
        for part in parts:
            seen = [NO_DIGESTS]
            yield from (Fault(str(part), what) for what in _check_part(part, spec, table, checksums, seen, owners))
            keys.append(np.concatenate(seen))
        for number, count in _count_repeated(keys).items():
            yield Fault(str(parts[number]), f"{count:,} rows whose shard, doc_id and chunk an earlier row of its task has")


def _count_repeated(keys: Sequence[Digests]) -> Counter[int]:
    """Count keys that an earlier row has, by the number of the part that repeats them."""
    every, number = np.concatenate(keys), np.repeat(np.arange(len(keys)), [len(each) for each in keys])
    order = np.argsort(every, kind="stable")
    again = np.flatnonzero(every[order][1:] == every[order][:-1]) + 1
    return Counter(number[order[again]].tolist())


def _check_part(
    part: PartName, spec: EmbeddingSpec, table: Location, checksums: Mapping[str, str], seen: list[Digests], owners: dict[bytes, str]
) -> Iterator[str]:
    """Yield the faults of one part; add its keys to `seen`, and its shards to `owners`."""
    places = [np.zeros((0, 2), np.int32)]
    store = part_file(table, str(part))
    try:
        with store.open_input() as file:
            data = file.read()
        if str(part) in checksums and checksum_of(data) != checksums[str(part)]:
            yield WRONG_CHECKSUM
            return
        with explain_damage(store.uri):
            for rows in split_batches(open_pages(io.BytesIO(data), store.uri)):
                yield from describe_faults(rows, spec)
                yield from _other_owners(rows, part.key, owners)
                seen.append(digest_keys(rows))
                places.append(np.stack([rows["chunk"].to_numpy(), rows["num_chunks"].to_numpy()], axis=1))
    except StorageError as error:
        yield f"cannot be read to its end ({why_damaged(error)})"
        return
    misplaced = count_misplaced(*np.concatenate(places).T)
    if misplaced:
        yield f"{misplaced:,} chunks that do not follow the one before, or end a document early"


def count_misplaced(chunk: npt.NDArray[np.int32], num_chunks: npt.NDArray[np.int32]) -> int:
    """Count breaks in a part's documents, each of which must be its chunks 0 … num_chunks − 1 in order."""
    starts = np.append(chunk == 0, True)
    ends = np.append(True, chunk + 1 == num_chunks)
    follows = np.concatenate([[False], (np.diff(chunk) == 1) & (np.diff(num_chunks) == 0), [False]])[: len(starts)]
    return int(np.where(starts, ~ends, ~follows).sum())


def describe_faults(rows: pa.Table, spec: EmbeddingSpec) -> Iterator[str]:
    """Yield the faults of these rows, each row taken by itself."""
    yield from _check_vectors(rows["embedding"].combine_chunks(), spec)
    starts, ends, tokens = (rows[name].to_numpy() for name in ("start_char", "end_char", "num_tokens"))
    yield from _count("spans that are empty or start before the text", (starts < 0) | (ends <= starts))
    yield from _count(f"chunks with 0 tokens or more than {spec.max_tokens}", (tokens < 1) | (tokens > spec.max_tokens))
    if "text" in rows.schema.names:
        yield from _count("texts that are not as long as their span", pc.utf8_length(rows["text"]).to_numpy() != ends - starts)
        if spec.chunking and not spec.has_context:
            yield from _count("texts that do not have their content hash", find_changed_texts(rows))
    nulls = sum(rows[name].null_count for name in ("doc_id", "content_hash", "shard", "row"))
    if nulls:
        yield f"{nulls:,} nulls in doc_id, content_hash, shard or row"


def find_changed_texts(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Mark rows whose text does not have its content hash. Only a document of one chunk has all of its text in its row."""
    whole = np.flatnonzero(rows["num_chunks"].to_numpy() == 1)
    texts, hashes = (rows[name].take(pa.array(whole)).to_pylist() for name in ("text", "content_hash"))
    changed = np.zeros(rows.num_rows, np.bool_)
    for row, text, content_hash in zip(whole, texts, hashes, strict=True):
        changed[row] = text is None or blake2b(text.encode(), digest_size=16).hexdigest() != content_hash
    return changed


def _check_vectors(vectors: pa.Array, spec: EmbeddingSpec) -> Iterator[str]:
    """Check lengths, and the values of float32 vectors; every byte is a valid code, every bit a valid sign."""
    measure, length = (pc.binary_length, spec.dim // 8) if spec.quantization == "binary" else (pc.list_value_length, spec.dim)
    wrong = measure(vectors).fill_null(-1).to_numpy() != length
    yield from _count(f"vectors that are not of {spec.dim} components", wrong)
    if spec.quantization != "none" or wrong.any():
        return
    values_ND = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), spec.dim).astype(np.float64)
    finite = np.isfinite(values_ND).all(axis=1)
    yield from _count("vectors with NaN or infinity", ~finite)
    if spec.normalize:
        yield from _count("vectors whose norm is not 1", finite & (np.abs(np.linalg.norm(values_ND, axis=1) - 1) > NORM_TOLERANCE))


def _count(what: str, wrong: npt.NDArray[np.bool_]) -> Iterator[str]:
    if wrong.any():
        yield f"{int(wrong.sum()):,} {what}"


def _other_owners(rows: pa.Table, key: str, owners: dict[bytes, str]) -> Iterator[str]:
    for shard in pc.unique(rows["shard"]).to_pylist():
        owner = owners.setdefault(blake2b(str(shard).encode(), digest_size=16).digest(), key)
        if owner != key:
            yield f"shard {shard} has rows in two tasks"
