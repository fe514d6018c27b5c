"""Token lengths → batches of rows that fit a token budget, longest first, so that a batch has rows of similar length.

Every row is in one batch, and rows of equal length keep their order. A row longer than the budget is its own batch.
"""

from collections.abc import Callable

import numpy as np

from embedder.core.errors import ModelError


def plan_padded(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Return the rows of each batch; number of rows times longest row stays within the budget."""
    order = _sort_longest_first(lengths)
    fitting_rows = np.maximum(token_budget // np.maximum(lengths[order], 1), 1).tolist()
    return _split(order, lambda start: start + fitting_rows[start])


def plan_packed(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Return the rows of each batch; the sum of its tokens stays within the budget."""
    order = _sort_longest_first(lengths)
    ends = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
    return _split(order, lambda start: max(start + 1, int(np.searchsorted(ends, ends[start] + token_budget, side="right")) - 1))


def _sort_longest_first(lengths: np.ndarray) -> np.ndarray:
    return np.argsort(-lengths.astype(np.int64), kind="stable")


def _split(order: np.ndarray, find_stop: Callable[[int], int]) -> list[np.ndarray]:
    batches, start = [], 0
    while start < len(order):
        stop = find_stop(start)
        batches.append(order[start:stop])
        start = stop
    return batches


def refuse_empty(lengths: np.ndarray) -> None:
    """Raise ModelError for a row without a token, which is the last one of a batch, if there is any."""
    if lengths[-1] == 0:
        raise ModelError(
            "a text without any token has no vector (HTML without text, or a tokenizer without special tokens); leave the text out"
        )
