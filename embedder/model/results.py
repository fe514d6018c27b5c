"""Results of an encoder, which a driver reads without importing torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors in the order of the input rows, with their cost."""

    vectors_ND: np.ndarray  # noqa: N815
    padded_tokens: int
    """Tokens computed, padding included; packed batches have none."""
    token_budget: int
    """The requested budget, or less if the device ran out of memory."""
    copies: int = 0
    """Rows with the token ids of an earlier row, whose vector they share."""
    copied_tokens: int = 0
    """Tokens of these rows, which were not computed."""


@dataclass(frozen=True, slots=True)
class ExitStates:
    """Inputs and targets to fit exit maps, one row per chunk."""

    states_NF: np.ndarray  # noqa: N815
    """Pooled and normalized states, ordered by layer, then by pooling."""
    native: Mapping[int, np.ndarray]
    """By depth: the vectors of an encoder of that depth, at full width."""
    full_NW: np.ndarray  # noqa: N815
    """Vectors of the full model."""

    def rows(self, start: int, stop: int) -> "ExitStates":
        """Return some of the rows."""
        native = {depth: vectors_NW[start:stop] for depth, vectors_NW in self.native.items()}
        return ExitStates(self.states_NF[start:stop], native, self.full_NW[start:stop])
