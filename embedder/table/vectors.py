"""Vectors as the table stores them: an Arrow column from codes, and codes from a column.

N = vectors, X = components, or packed bytes if a component is one bit.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedder.core.schema import VECTORS
from embedder.core.spec import EmbeddingSpec, Quantization

Codes = npt.NDArray[Any]

CODES: dict[Quantization, npt.DTypeLike] = {"none": np.float32, "int8": np.int8, "binary": np.uint8}
"""Type of a stored component, or of eight packed ones for binary."""


def num_codes(spec: EmbeddingSpec) -> int:
    """Return X, the number of codes in one vector."""
    return spec.dim // 8 if spec.quantization == "binary" else spec.dim


def from_bytes(data: bytes, spec: EmbeddingSpec) -> Codes:
    """Read the result of `codes_NX.tobytes()`."""
    return np.frombuffer(data, CODES[spec.quantization]).reshape(-1, num_codes(spec))


def quantization_of(codes_NX: Codes) -> Quantization:
    """Return the quantization that the dtype of codes belongs to."""
    return next(name for name, dtype in CODES.items() if codes_NX.dtype == dtype)


def vector_column(codes_NX: Codes) -> pa.Array:
    """Return codes as a column of their type, without copying the values."""
    num_rows, width = codes_NX.shape
    quantization = quantization_of(codes_NX)
    offsets = pa.array(np.arange(num_rows + 1) * width, pa.int32())
    if quantization == "binary":
        return pa.Array.from_buffers(pa.binary(), num_rows, [None, offsets.buffers()[1], pa.py_buffer(np.ascontiguousarray(codes_NX))])
    return pa.ListArray.from_arrays(offsets, pa.array(codes_NX.reshape(-1)), type=VECTORS[quantization])


def column_codes(column: pa.Array | pa.ChunkedArray) -> Codes:
    """Read a vector column as codes of shape (N, X); all rows have one length."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_binary(array.type):
        values = np.frombuffer(b"".join(array.to_pylist()), np.uint8)
    else:
        values = array.flatten().to_numpy(zero_copy_only=False)
    codes_NX: Codes = values.reshape(len(array), -1 if len(array) else 0)
    return codes_NX
