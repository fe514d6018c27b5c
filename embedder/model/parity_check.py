"""Fixed token ids by which encoders are compared: packed sequences are held against padded ones, and a converted encoder against torch's.

Nothing is stored before that.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch

from embedder.config.compute import Backend, Layout
from embedder.core.errors import ModelError
from embedder.model.backends import kernel_errors
from embedder.model.batches import LayoutName
from embedder.model.files.families import position_limit

PROBE_TOKENS = 16
LAYOUT_PROBE_TOKENS = (300, 16, 3, 64)
"""Neighbours of other lengths, one longer than a window of ModernBERT or of a bidirectional Gemma 3."""
LAYOUT_COSINE = 0.999
"""Least cosine of a vector packed to the same padded: a token that sees a neighbour, or misses its own, costs far more."""
FLOAT8_COSINE = 0.99
"""Least cosine between two ways to compute around float8, which makes more of a last bit."""

logger = logging.getLogger("embedder")


class Probed(Protocol):
    """An encoder that can be compared."""

    def probe_rows(self) -> np.ndarray:
        """Return the vectors of fixed sequences of several lengths."""


Encoding = TypeVar("Encoding", bound=Probed)


def make_probe(config: Any, lengths: Sequence[int] = (PROBE_TOKENS,), longer: int = 0) -> pa.ListArray:
    """Make fixed sequences of these lengths and more, none longer than the model allows, from tokens of its own that are not padding."""
    offsets = np.cumsum([0, *(min(length + longer, position_limit(config)) for length in lengths)], dtype=np.int32)
    token_ids = (np.arange(1, offsets[-1] + 1) * 97 % config.vocab_size).astype(np.int32)
    token_ids[token_ids == (config.pad_token_id or 0)] += 1
    return pa.ListArray.from_arrays(offsets, token_ids)


def agree_on_layout(build: Callable[[LayoutName], Encoding], asked: Layout) -> Encoding:
    """Build the packed encoder if it gives the padded one's vectors; else refuse where packed was asked for, or warn and build padded."""
    expected_ND = build("padded").probe_rows()
    packed = build("packed")
    fault = find_fault(packed, expected_ND)
    if fault is None:
        return packed
    if asked == "packed":
        raise ModelError(f"compute.layout=packed: {fault}; choose auto or padded")
    logger.warning("compute.layout=auto: %s; going on with padded batches, which are slower", fault)
    return build("padded")


def find_fault(packed: Probed, expected_ND: np.ndarray) -> str | None:
    """Return the fault of an encoder's probe vectors; None if they agree."""
    try:
        vectors_ND = packed.probe_rows()
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # a failed device fails every later call too
        raise
    except RuntimeError as error:  # what torch raises where a device has no kernel
        return f"attention over packed sequences does not run on this device ({error})"
    cosine = least_cosine(vectors_ND, expected_ND)
    return (
        None if cosine >= LAYOUT_COSINE else f"packed, a probe's vector has a cosine of {cosine:.4f} to the same padded ({LAYOUT_COSINE})"
    )


def agree_on_backend(
    expected_ND: np.ndarray, convert: Callable[[], Encoding], asked: Backend, least: float = LAYOUT_COSINE, name: str = "openvino"
) -> Encoding | None:
    """Return the converted encoder if it reproduces torch's probe vectors; else raise ModelError if it was asked for, or warn."""
    faults: tuple[type[Exception], ...] = (ModelError, RuntimeError, *kernel_errors())  # of a converter or compiler
    try:
        converted = convert()
        cosine = least_cosine(converted.probe_rows(), expected_ND)
        fault = f"a probe's vector has a cosine of {cosine:.4f} to torch's ({least})"
        if cosine >= least:
            return converted
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except faults as error:
        fault = str(error)
    if asked != "auto":
        raise ModelError(f"compute.backend={asked}: {fault}; choose auto or torch")
    logger.warning("compute.backend=auto: %s: %s; going on with torch, which is slower", name, fault)
    return None


def least_cosine(vectors_ND: np.ndarray, expected_ND: np.ndarray) -> float:
    """Compare row by row; what is not a number stays so."""
    norms_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(expected_ND, axis=1)
    return float(((vectors_ND * expected_ND).sum(axis=1) / norms_N).min())
