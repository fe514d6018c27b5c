"""The steps of a training: which chunks each takes, and how far it goes."""

import math

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

WARM_UP = 0.06
"""Share of the steps over which the learning rate rises."""


def plan_steps(rows_N: Rows, lengths_N: npt.NDArray[np.int32], batch_chunks: int, draw: np.random.Generator) -> list[Rows]:
    """Cut rows into batches of like lengths, other ones at each call, in random order; within a batch the longest comes first."""
    order = rows_N[np.argsort(-lengths_N[rows_N] * draw.uniform(0.9, 1.1, len(rows_N)))]
    batches = np.array_split(order, math.ceil(len(order) / batch_chunks))
    return [batches[number][np.argsort(-lengths_N[batches[number]])] for number in draw.permutation(len(batches))]


def rate_at(progress: float) -> float:
    """Give the share of the learning rate at a share of all steps: it rises, and falls to nothing along a cosine."""
    return progress / WARM_UP if progress < WARM_UP else 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
