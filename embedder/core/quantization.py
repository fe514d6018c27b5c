"""Vectors → stored codes and back: int8 by ranges fitted once, or one bit a component. Pure functions of numpy.

N = vectors, D = dim, P = packed bytes, D / 8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedder.core.spec import Quantization

Floats = npt.NDArray[np.float32]

STEPS = 255
"""An int8 component has 256 codes: 255 bins of its range, and one for its maximum alone."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """The smallest and largest value of each component over a sample of truncated, normalized vectors."""

    low_D: Floats  # noqa: N815
    high_D: Floats  # noqa: N815

    @property
    def step_D(self) -> Floats:  # noqa: N802
        """Width of a bin; 0 where a component never varied, so that it is restored exactly."""
        steps_D: Floats = (self.high_D - self.low_D) / np.float32(STEPS)
        return steps_D

    def record(self) -> dict[str, list[float]]:
        """Return both as JSON values, which read back to equal float32."""
        return {"low": self.low_D.tolist(), "high": self.high_D.tolist()}


def read_ranges(record: Mapping[str, Any] | None) -> Ranges | None:
    """Read ranges from the result of `Ranges.record`, in a run's record or a part's footer."""
    return Ranges(np.asarray(record["low"], np.float32), np.asarray(record["high"], np.float32)) if record else None


def fit_ranges(vectors_ND: Floats) -> Ranges:
    """Return each component's smallest and largest value; ranges per batch would give every batch other codes."""
    assert len(vectors_ND), "ranges of no vectors"
    return Ranges(vectors_ND.min(axis=0), vectors_ND.max(axis=0))


def to_int8(vectors_ND: Floats, ranges: Ranges) -> npt.NDArray[np.int8]:
    """Return the bin number of each component, -128 to 127; values outside the range get the outermost bin."""
    steps_D = np.where(ranges.step_D > 0, ranges.step_D, np.float32(1))
    bins_ND = np.floor((vectors_ND - ranges.low_D) / steps_D)
    codes_ND: npt.NDArray[np.int8] = (np.clip(bins_ND, 0, STEPS) - 128).astype(np.int8)
    return codes_ND


def from_int8(codes_ND: npt.NDArray[np.int8], ranges: Ranges) -> Floats:
    """Return the middle of each code's bin: at most half a step from a value within the range."""
    vectors_ND: Floats = (codes_ND.astype(np.float32) + np.float32(128.5)) * ranges.step_D + ranges.low_D
    return vectors_ND


def to_binary(vectors_ND: Floats) -> npt.NDArray[np.uint8]:
    """Return the sign of each component as a bit, eight to a byte, the first component highest; D is divisible by 8."""
    assert vectors_ND.shape[1] % 8 == 0, vectors_ND.shape
    return np.packbits(vectors_ND > 0, axis=1)


def from_binary(codes_NP: npt.NDArray[np.uint8]) -> Floats:
    """Return +1 for a set bit and -1 for any other."""
    return np.unpackbits(codes_NP, axis=1).astype(np.float32) * 2 - 1


def cut_vectors(vectors_NW: Floats, dim: int, normalize: bool) -> Floats:
    """Return the leading components, scaled to unit length if `normalize`."""
    cut_ND = np.ascontiguousarray(vectors_NW[:, :dim])
    if not normalize:
        return cut_ND
    unit_ND: Floats = cut_ND / np.maximum(np.linalg.norm(cut_ND, axis=1, keepdims=True), np.float32(1e-12))
    return unit_ND


def quantize(vectors_ND: Floats, quantization: Quantization, ranges: Ranges | None) -> npt.NDArray[Any]:
    """Return the codes to store: float32 unchanged, int8 by the ranges, bits by the sign."""
    if quantization == "binary":
        return to_binary(vectors_ND)
    if quantization == "none":
        return vectors_ND
    assert ranges is not None, "int8 without ranges"
    return to_int8(vectors_ND, ranges)


def restore(codes_NX: npt.NDArray[Any], quantization: Quantization, ranges: Ranges | None) -> Floats:
    """Return the vectors that stored codes represent; those of int8 and binary do not have unit length."""
    if quantization == "binary":
        return from_binary(codes_NX)
    if quantization == "none":
        return codes_NX
    assert ranges is not None, "int8 without ranges"
    return from_int8(codes_NX, ranges)
