"""What an encoder gives, by types that a driver reads without importing torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors in the order of the rows given, and what they cost."""

    vectors_ND: np.ndarray  # noqa: N815
    padded_tokens: int
    """Tokens computed, padding included: with packed sequences, those given."""
    token_budget: int
    """The budget given, or what was left of it when the device's memory did not allow it."""


@dataclass(frozen=True, slots=True)
class ExitStates:
    """What a map out of a shallow depth is fitted on, a row a chunk."""

    states_NF: np.ndarray  # noqa: N815
    """Pooled and normalised states, by layer and within it by pooling."""
    native: Mapping[int, np.ndarray]
    """By depth: what an encoder cut there would give, at full width."""
    full_NW: np.ndarray  # noqa: N815
    """What this encoder gives."""
