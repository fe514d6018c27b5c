"""What turning vectors onto their principal axes keeps at small dims, on chunks that the axes were not fitted on.

N = chunks, W = the full model's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from embedder.study.exits import Floats, share_of_nearest, unit


@dataclass(frozen=True, slots=True)
class CutReport:
    """Of one dim: the share of the ten nearest chunks by whole vectors that are so by cut ones too, as they are and turned first."""

    dim: int
    plain: float
    rotated: float


def measure_cuts(full_NW: Floats, rotation_WW: Floats, dims: Sequence[int]) -> tuple[CutReport, ...]:
    """Cut vectors of the full model both ways, to every dim below the full width."""
    full_NW = unit(full_NW)
    turned_NW = full_NW @ rotation_WW
    reports = []
    for dim in dims:
        if dim < full_NW.shape[1]:
            plain, rotated = (share_of_nearest(full_NW, unit(each_NW[:, :dim])) for each_NW in (full_NW, turned_NW))
            reports.append(CutReport(dim, plain, rotated))
    return tuple(reports)
