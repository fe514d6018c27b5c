"""Token lengths → batches of rows that fit a token budget with next to no padding."""

import numpy as np


def plan_batches(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
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
