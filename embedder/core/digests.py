"""`digest` of many values at a time: their JSON is joined as columns, and hashed row by row or group by group."""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.spec import canonical

BATCH_ROWS = 1 << 16
"""Rows that are turned into Python objects at a time."""

_IS_PLAIN = np.zeros(256, np.bool_)
_IS_PLAIN[[byte for byte in range(0x20, 0x7F) if chr(byte) not in '"\\']] = True
"""Bytes that stand for themselves in JSON."""
_NOT_PLAIN = r"[^ !#-\[\]-~]"


def escape(texts: pa.Array) -> pa.Array:
    """Return texts as JSON has them between quotes."""
    if _IS_PLAIN[_bytes_of(texts)].all():
        return texts
    strange = pc.match_substring_regex(texts, _NOT_PLAIN)
    escaped = [canonical(text)[1:-1] for text in texts.filter(strange).to_pylist()]
    return pc.replace_with_mask(texts, strange, pa.array(escaped, texts.type))


def digest_each(parts: Sequence[str | pa.LargeStringArray], num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return `digest` of each row's value, whose JSON is the row of columns and constants one after the other; shape (rows, bytes)."""
    num_rows = next(len(part) for part in parts if not isinstance(part, str))
    found: list[bytes] = []
    for start in range(0, num_rows, BATCH_ROWS):
        batch = join_texts(*(part if isinstance(part, str) else part.slice(start, BATCH_ROWS) for part in parts)).cast(pa.large_binary())
        found += [blake2b(text, digest_size=num_bytes).digest() for text in batch.to_numpy(zero_copy_only=False)]
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, num_bytes)


def digest_groups(before: str, texts: pa.LargeStringArray, stops: npt.NDArray[np.int64], num_bytes: int) -> list[str]:
    """Return a hash of each group of neighboring texts, of which each ends with a comma, as the members of a JSON list."""
    data, ends = memoryview(texts.buffers()[2]), _offsets_of(texts)[np.concatenate([[0], stops])].tolist()
    started = blake2b(before.encode(), digest_size=num_bytes)
    found = []
    for start, stop in pairwise(ends):
        hashed = started.copy()
        hashed.update(data[start : stop - 1])
        hashed.update(b"]")
        found.append(hashed.hexdigest())
    return found


def join_texts(*parts: str | pa.LargeStringArray) -> pa.LargeStringArray:
    """Join columns and constants, row by row."""
    made = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*made, pa.scalar("", pa.large_string()))


def _offsets_of(texts: pa.LargeStringArray) -> npt.NDArray[np.int64]:
    return np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]


def _bytes_of(texts: pa.LargeStringArray) -> npt.NDArray[np.uint8]:
    if not len(texts):
        return np.zeros(0, np.uint8)
    offsets = _offsets_of(texts)
    return np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
