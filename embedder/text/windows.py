"""Tokens → windows: where a cut is allowed, how much it is preferred, and the windows that cover all tokens."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from embedder.text.boundaries import NO_BOUNDARIES, Boundaries, find_ends
from embedder.text.tokenizing import Bools, Tokens

Window = tuple[int, int]
"""Start and stop token."""
Cuts = Sequence[Sequence[int]]
"""Tokens before which a cut is allowed, in order: those of each boundary, the preferred first, and at last all, the end included."""


def find_cuts(tokens: Tokens, window: int, text: str = "", boundaries: Boundaries = NO_BOUNDARIES) -> Cuts:
    """Return the cuts of a text at the places of its boundaries and at words, all of them at most one window apart.

    A boundary within a word is a cut too if it lies between tokens: a tokenizer without pre-tokens takes a line of Japanese for a word.
    """
    allowed, preferred = tokens.word_starts, _place(tokens, text, boundaries)
    if preferred:
        allowed = allowed.copy()
        allowed[preferred[-1]] = True
    every = np.flatnonzero(np.append(_refine(tokens, allowed, window), True))
    return [*preferred, every.astype(np.int32).data]  # a view costs 4 bytes a number, a list 36


def _place(tokens: Tokens, text: str, boundaries: Boundaries) -> list[list[int]]:
    """Return for each rank the first tokens at or after the end of the visible text before its boundaries, if they are between tokens."""
    preferred: list[list[int]] = [[] for _ in range(boundaries.num_ranks)]
    starts, ends = tokens.starts.data, tokens.ends.data
    for place, rank, end in zip(boundaries.places, boundaries.ranks, find_ends(text, boundaries.places), strict=True):
        first = bisect_left(starts, end)  # numpy takes longer for the few boundaries of most texts
        if 0 < first < len(starts) and ends[first - 1] <= place:
            for cuts in preferred[rank:]:
                cuts.append(first)
    return preferred


def _refine(tokens: Tokens, cuts: Bools, window: int) -> Bools:
    """Mark the tokens before which a cut is allowed, at most one window apart: at words, in words longer than a window at characters,
    and in a character of more tokens than a window anywhere."""
    characters = np.ones(len(tokens), dtype=np.bool_)
    characters[1:] = tokens.starts[1:] >= tokens.ends[:-1]
    for finer in (characters, np.ones(len(tokens), dtype=np.bool_)):
        sizes = np.diff(np.flatnonzero(cuts), append=len(tokens))
        if int(sizes.max()) <= window:
            break
        cuts = cuts | (finer & np.repeat(sizes > window, sizes))
    return cuts


def plan_windows(cuts: Cuts, window: int, overlap: int = 0, least: int = 0) -> list[Window]:
    """Cover all tokens with windows of at most `window` tokens, in order.

    A window stops at the last cut of the most preferred boundary in its last third, or else at its last cut. It starts at most `overlap`
    tokens before the previous stop: at the first boundary, or else at the first word, from which it reaches further than the previous
    one. If the last window has fewer than `least` tokens, the one before stops that much earlier. `overlap` is smaller than `window`.
    """
    assert 0 <= overlap < window
    total = cuts[-1][-1]
    windows, start, reached = list[Window](), 0, 0
    while start + window < total:
        stop = _find_stop(cuts, max(start + window - window // 3, reached + 1), start + window)
        windows.append((start, stop))
        start, reached = _find_start(cuts, stop, overlap, window), stop
    windows.append((start, total))
    if len(windows) > 1 and total - start < least:
        first, reached = windows[-2][0], windows[-3][1] if len(windows) > 2 else 0
        lowest = max(first, reached) + 1
        stop = _find_stop(cuts, max(total - least - window // 3, lowest), total - least)
        if lowest <= stop and total - stop <= window:
            windows[-2:] = [(first, stop), (_find_start(cuts, stop, overlap, window, total), total)]
    return windows


def _find_stop(cuts: Cuts, low: int, high: int) -> int:
    """Return the last cut up to `high` of the first boundary that has one from `low` on, or else of all."""
    lasts = [each[at - 1] if (at := bisect_right(each, high)) else 0 for each in cuts]
    return next((last for last in lasts if last >= low), lasts[-1])


def _find_start(cuts: Cuts, stop: int, overlap: int, window: int, reach: int = 0) -> int:
    """Return the first cut that lies at most `overlap` before `stop` and from which a window reaches further, or `reach`."""
    *preferred, every = cuts
    further = reach or every[min(bisect_right(every, stop), len(every) - 1)]
    low = max(stop - overlap, further - window)
    for boundary in preferred[-1:]:
        at = bisect_left(boundary, low)
        if at < len(boundary) and boundary[at] < stop:
            return boundary[at]
    return every[bisect_left(every, low)]
