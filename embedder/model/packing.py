"""Token lengths → batches of rows that fit a token budget, longest first, so that rows of a batch are of like length."""

import numpy as np


def plan_padded(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Cut rows into batches, longest first, whose rows times longest stay within the budget; every row comes once.

    Rows of equal length keep their order. A row longer than the budget is a batch of its own.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    longest = np.maximum(lengths[order], 1)
    rows_that_fit = np.maximum(token_budget // longest, 1).tolist()
    batches, start = [], 0
    while start < len(order):
        stop = start + rows_that_fit[start]
        batches.append(order[start:stop])
        start = stop
    return batches


def plan_packed(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Cut rows into batches, longest first, whose tokens stay within the budget; every row comes once.

    Rows of equal length keep their order. A row longer than the budget is a batch of its own.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    ends = np.cumsum(lengths[order], dtype=np.int64)
    batches, start = [], 0
    while start < len(order):
        taken = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, taken + token_budget, side="right")))
        batches.append(order[start:stop])
        start = stop
    return batches
