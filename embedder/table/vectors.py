"""Vectors as the table stores them: an Arrow column from codes, and codes from a column.

N = vectors, X = components, or packed bytes where a component is one bit.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedder.core.schema import VECTORS
from embedder.core.spec import EmbeddingSpec, Quantization

Codes = npt.NDArray[Any]

CODES: dict[Quantization, npt.DTypeLike] = {"none": np.float32, "int8": np.int8, "binary": np.uint8}
"""What a component, or for binary eight of them, is held in."""


def num_codes(spec: EmbeddingSpec) -> int:
    """Count the codes of one vector: X."""
    return spec.dim // 8 if spec.quantization == "binary" else spec.dim


def from_bytes(data: bytes, spec: EmbeddingSpec) -> Codes:
    """Read back what `codes_NX.tobytes()` gave."""
    return np.frombuffer(data, CODES[spec.quantization]).reshape(-1, num_codes(spec))


def quantization_of(codes_NX: Codes) -> Quantization:
    """Tell by their dtype how codes are quantized."""
    return next(name for name, dtype in CODES.items() if codes_NX.dtype == dtype)


def vector_column(codes_NX: Codes) -> pa.Array:
    """Wrap codes as a column of their type, without copying the values."""
    num_rows, width = codes_NX.shape
    quantization = quantization_of(codes_NX)
    offsets = np.arange(0, (num_rows + 1) * width, width, dtype=np.int32) if width else np.zeros(num_rows + 1, np.int32)
    if quantization == "binary":
        return pa.Array.from_buffers(pa.binary(), num_rows, [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(codes_NX))])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes_NX.reshape(-1)), type=VECTORS[quantization])


def column_codes(column: pa.Array | pa.ChunkedArray) -> Codes:
    """Read a vector column as codes of shape (N, X); its rows are of one length."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_binary(array.type):
        return np.frombuffer(b"".join(array.to_pylist()), np.uint8).reshape(len(array), -1 if len(array) else 0)
    values = array.flatten().to_numpy(zero_copy_only=False)
    codes_NX: Codes = values.reshape(len(array), -1 if len(array) else 0)
    return codes_NX
