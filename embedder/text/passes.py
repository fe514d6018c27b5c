"""Windows → passes of late chunking (Günther et al. 2024, arXiv 2409.04701): windows that are pooled from the states of one pass.

A document that fits is one pass. Otherwise a pass takes as many windows as fit, and the next one begins before the first window that did
not, with the tokens there as context ("long late chunking"). A window lies in one pass; the published code takes its tokens from two if
it crosses their border.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from embedder.text.tokenizing import Int32s
from embedder.text.windows import Window

CONTEXT_SHARE = 8
"""A pass but the first begins with an eighth of its tokens as context, or with fewer if its first window leaves less room."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A run of windows, and the run of a document's tokens that is encoded for them."""

    windows: range
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Share:
    """A chunk's share of its pass: the parts of the pass's token ids if it is the first chunk there, and the tokens pooled."""

    token_ids: list[Int32s]
    first_token: int
    num_tokens: int


def share_own(token_ids: list[Int32s]) -> Share:
    """Return the share of a chunk that is a pass of its own."""
    return Share(token_ids, 0, sum(map(len, token_ids)))


def plan_passes(windows: Sequence[Window], room: int) -> list[Pass]:
    """Return passes of at most `room` tokens with all windows in order; none of them has more than `room` tokens."""
    passes, first = list[Pass](), 0
    while first < len(windows):
        begin, end = windows[first]
        start = max(0, begin - min(room // CONTEXT_SHARE, room - (end - begin)))
        stop = first + 1
        while stop < len(windows) and windows[stop][1] <= start + room:
            stop += 1
        passes.append(Pass(range(first, stop), start, windows[stop - 1][1]))
        first = stop
    return passes


def share_passes(
    windows: Sequence[Window], room: int, ids: Int32s, first: list[Int32s], before: list[Int32s], after: list[Int32s]
) -> list[Share]:
    """Return each window's share. `first` are the tokens before the document, `before` before its other passes, `after` after every pass.

    The document's first and last window are pooled with the tokens before and after it: a document of one window has the vector that it
    has without late chunking.
    """
    shares = []
    for each in plan_passes(windows, room):
        lead = first if each.start == 0 else before
        num_before = sum(map(len, lead))
        parts = [*lead, ids[each.start : each.stop], *after]
        for number in each.windows:
            start, stop = (num_before + at - each.start for at in windows[number])
            if number == 0:
                start = 0
            if number == len(windows) - 1:
                stop += sum(map(len, after))
            shares.append(Share(parts if number == each.windows.start else [], start, stop - start))
    return shares
