"""Figures of quality and cost → rows, each beside the full model, with what chance allows; the front; the recommended setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedder.core.errors import ConfigError
from embedder.sweep.config import PickConfig
from embedder.sweep.cost import Cost
from embedder.sweep.evaluate import Score, Scored
from embedder.sweep.grid import Setting
from embedder.sweep.metrics import Doubles, interval
from embedder.sweep.number_format import show_usd

MIN_QUALITY = 0.97


@dataclass(frozen=True, slots=True)
class Kept:
    """Quality beside the full model's: 1 is as good. The interval is that of the paired difference, None without figures by query."""

    quality: float
    """Mean over datasets of each one's main metric."""
    share: float
    low: float | None
    high: float | None

    @property
    def floor(self) -> float:
        """What can be promised."""
        return self.share if self.low is None else self.low

    @property
    def within_noise(self) -> bool:
        """Whether the difference to the full model may be chance."""
        return self.low is not None and self.high is not None and self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True)
class Row:
    """One setting: what it keeps and what it costs."""

    setting: Setting
    metrics: Mapping[str, Mapping[str, float]]
    """By dataset, by metric."""
    kept: Kept | None
    """None where some dataset has no figure for it."""
    cost: Cost

    @property
    def can_be_embedded(self) -> bool:
        """Whether `embed` and `search` run it as it is: raw layers are searched by their like, calibrated ones by the full model."""
        return self.setting.query_side == ("full" if self.setting.exit == "calibrated" else "same")

    @property
    def competes(self) -> bool:
        """Whether it can be embedded so, and what that takes is known: where float8 is emulated, only its quality is."""
        return self.can_be_embedded and not self.cost.is_emulated


@dataclass(frozen=True, slots=True)
class Choice:
    """The recommended setting, None if nothing fits, and why."""

    row: Row | None
    why: str


def build_rows(scored: Sequence[Scored], costs: Mapping[Setting, Cost], reference: Setting) -> list[Row]:
    """Put figures of all datasets side by side, and compare each setting with the full model."""
    mains = [each for each in scored if any(score.main for score in each.scores.values())]
    rows = []
    for setting, cost in costs.items():
        metrics = {each.dataset: dict(each.scores[setting].metrics) for each in scored if setting in each.scores}
        has_all = bool(mains) and all(setting in each.scores for each in mains)
        pairs = [(each.scores[setting], each.scores[reference]) for each in mains] if has_all else []
        rows.append(Row(setting, metrics, _compare(pairs) if pairs else None, cost))
    return rows


def _compare(pairs: Sequence[tuple[Score, Score]]) -> Kept:
    """Divide mean by mean, over the same resamples of queries on both sides."""
    mine, full = (float(np.mean([_main(score) for score in side])) for side in zip(*pairs, strict=True))
    if full <= 0:
        raise ConfigError(
            f"quality: the full model scores {full:.3f}, so nothing can be kept of it; check the labels, and the model's prompts"
        )
    resampled = [_resampled(side) for side in zip(*pairs, strict=True)]
    if resampled[0] is None or resampled[1] is None:
        return Kept(mine, mine / full, None, None)
    is_defined = resampled[1] > 0  # of few queries, a resample may hold none that the full model answers
    low, high = interval(resampled[0][is_defined] / resampled[1][is_defined])
    return Kept(mine, mine / full, low, high)


def _main(score: Score) -> float:
    assert score.main is not None
    return score.metrics[score.main]


def _resampled(side: Sequence[Score]) -> Doubles | None:
    """Average the resamples over datasets; a dataset without them counts as it is, all of them without give None."""
    if all(score.resampled_R is None for score in side):
        return None
    size = max(len(score.resampled_R) for score in side if score.resampled_R is not None)
    each = [np.full(size, _main(score)) if score.resampled_R is None else score.resampled_R for score in side]
    total: Doubles = np.mean(each, axis=0)
    return total


def burden(row: Row, reference: Row) -> float:
    """Give what a setting costs: money where both its parts have a price, else time and index each beside the full model's, multiplied."""
    cost, full = row.cost, reference.cost
    if cost.usd is not None and cost.index_usd is not None:
        return cost.usd
    return math.sqrt((cost.seconds / full.seconds) * (cost.index_bytes / full.index_bytes))


def find_front(rows: Sequence[Row], reference: Row) -> list[Row]:
    """Keep the settings than which none is both cheaper and better, cheapest first."""
    front: list[Row] = []
    for row in sorted((row for row in rows if row.kept), key=lambda row: (burden(row, reference), -_share(row))):
        if not front or _share(row) > _share(front[-1]):
            front.append(row)
    return front


def choose_row(rows: Sequence[Row], reference: Row, pick: PickConfig) -> Choice:
    """Pick the cheapest setting that keeps enough, or the best that can be paid."""
    able = [row for row in rows if row.kept and row.competes and row.setting.model == reference.setting.model]
    least = pick.min_quality if pick.min_quality is not None or pick.budget_usd is not None else MIN_QUALITY
    good = [row for row in able if least is None or (row.kept and row.kept.floor >= least)]
    paid = [row for row in able if pick.budget_usd is None or (row.cost.usd is not None and row.cost.usd <= pick.budget_usd)]
    fitting = [row for row in good if row in paid]
    if not fitting:
        return Choice(None, _nothing_fits(good, paid, least, pick.budget_usd))
    if least is not None:
        chosen = min(fitting, key=lambda row: (burden(row, reference), -_share(row)))
        within = f" and costs at most {show_usd(pick.budget_usd)}" if pick.budget_usd is not None else ""
        what = f"the cheapest of {len(able)} settings that keeps at least {least:.1%} of the full model's quality"
        return Choice(chosen, f"{what}, at the lower end of its 95% interval{within}")
    best = max(fitting, key=_share)
    assert best.kept is not None
    chosen = min((row for row in fitting if _share(row) >= best.kept.floor), key=lambda row: (burden(row, reference), -_share(row)))
    most = show_usd(pick.budget_usd or 0.0)
    return Choice(chosen, f"the cheapest of those that no affordable setting is clearly better than, for at most {most}")


def _nothing_fits(good: Sequence[Row], paid: Sequence[Row], least: float | None, budget_usd: float | None) -> str:
    cheapest = min((row for row in good if row.cost.usd is not None), key=lambda row: row.cost.usd or 0.0, default=None)
    best = max(paid, key=_share, default=None)
    budget, reasons = show_usd(budget_usd or 0.0), []
    if cheapest is not None:
        that = f"the cheapest that keeps {least:.1%}" if least else "the cheapest"
        reasons.append(f"{that} costs {show_usd(cheapest.cost.usd or 0.0)} ({cheapest.setting.label()})")
    if best is not None:
        reasons.append(f"the best for {budget} keeps {_share(best):.1%} ({best.setting.label()})")
    return "no setting fits: " + ("; ".join(reasons) or f"none costs as little as {budget}")


def _share(row: Row) -> float:
    return row.kept.share if row.kept else 0.0
