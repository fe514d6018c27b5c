"""From the word starts of a document to windows of tokens: no word is cut that fits a window, no token is left out."""

from bisect import bisect_left, bisect_right

import numpy as np

from embedder.text.tokenizing import Bools, Tokens


def plan_windows(tokens: Tokens, window: int, overlap: int) -> list[tuple[int, int]]:
    """Cover all tokens with windows of at most `window`, each as (start, stop), in order.

    Windows start and stop between words. Each starts at most `overlap` tokens before the one before stopped: at the
    first word there from which it reaches further than that one did. `overlap` is smaller than `window`.
    """
    assert 0 <= overlap < window
    assert len(tokens) > 0
    cuts = np.append(np.flatnonzero(_find_cuts(tokens, window)), len(tokens)).tolist()
    windows, start = [], 0
    while True:
        last = bisect_right(cuts, start + window) - 1
        stop = cuts[last]
        windows.append((start, stop))
        if stop == len(tokens):
            return windows
        start = cuts[bisect_left(cuts, max(stop - overlap, cuts[last + 1] - window))]


def _find_cuts(tokens: Tokens, window: int) -> Bools:
    """Mark the tokens before which may be cut: at words; in words longer than a window at characters; in the rare
    character of more tokens than a window anywhere. Between two cuts there is then at most one window."""
    cuts = tokens.word_starts
    characters = np.ones(len(tokens), dtype=np.bool_)
    characters[1:] = tokens.starts[1:] >= tokens.ends[:-1]
    for finer in (characters, np.ones(len(tokens), dtype=np.bool_)):
        sizes = np.diff(np.flatnonzero(cuts), append=len(tokens))
        if int(sizes.max()) <= window:
            break
        cuts = cuts | (finer & np.repeat(sizes > window, sizes))
    return cuts
