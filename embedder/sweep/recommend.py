"""Scores and costs → rows compared with the full model, the front of the best ones, and the recommended setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedder.core.errors import ConfigError
from embedder.core.rotation import Doubles
from embedder.sweep.config import PickConfig
from embedder.sweep.cost import Cost, show_usd
from embedder.sweep.evaluate import Score, Scores
from embedder.sweep.grid import Setting
from embedder.sweep.metrics import interval

MIN_QUALITY = 0.97


@dataclass(frozen=True, slots=True)
class Kept:
    """Quality relative to the full model's, with the interval of the paired difference; None without scores by query."""

    quality: float
    """Mean over datasets of the main metric."""
    share: float
    low: float | None
    high: float | None

    @property
    def floor(self) -> float:
        """Lower end of the interval, or the share itself without one."""
        return self.share if self.low is None else self.low

    @property
    def within_noise(self) -> bool:
        """Whether the difference to the full model may be chance."""
        return self.low is not None and self.high is not None and self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True)
class Row:
    """One setting: the quality it keeps and what it costs."""

    setting: Setting
    metrics: Mapping[str, Mapping[str, float]]
    """By dataset, by metric."""
    kept: Kept | None
    """None if a dataset has no score for it."""
    cost: Cost

    @property
    def share(self) -> float:
        """Share of the full model's quality, 0 if unknown."""
        return self.kept.share if self.kept else 0.0

    @property
    def can_be_embedded(self) -> bool:
        """Whether `embed` and `search` run it: calibrated exits are searched by the full model, native ones by their own depth."""
        return self.setting.query_side == ("full" if self.setting.exit == "calibrated" else "same")

    @property
    def competes(self) -> bool:
        """Whether it can be embedded at a known cost; emulated float8 has none."""
        return self.can_be_embedded and not self.cost.is_emulated


def build_rows(scored: Mapping[str, Scores], costs: Mapping[Setting, Cost], reference: Setting) -> list[Row]:
    """Join each setting's scores by dataset, and compare them with the full model's."""
    mains = [scores for scores in scored.values() if any(score.main for score in scores.values())]
    rows = []
    for setting, cost in costs.items():
        metrics = {name: dict(scores[setting].metrics) for name, scores in scored.items() if setting in scores}
        kept = None
        if mains and all(setting in scores for scores in mains):
            kept = _compare([scores[setting] for scores in mains], [scores[reference] for scores in mains])
        rows.append(Row(setting, metrics, kept, cost))
    return rows


def _compare(mine: Sequence[Score], full: Sequence[Score]) -> Kept:
    """Divide mean by mean, over the same resamples of queries on both sides."""
    quality, full_quality = (float(np.mean([_main(score) for score in side])) for side in (mine, full))
    if full_quality <= 0:
        raise ConfigError(
            f"quality: the full model scores {full_quality:.3f}, so shares of it are undefined; check the labels and the model's prompts"
        )
    mine_R, full_R = _resampled(mine), _resampled(full)
    if mine_R is None or full_R is None:
        return Kept(quality, quality / full_quality, None, None)
    is_defined = full_R > 0  # a resample of few queries may hold none that the full model answers
    return Kept(quality, quality / full_quality, *interval(mine_R[is_defined] / full_R[is_defined]))


def _main(score: Score) -> float:
    assert score.main is not None
    return score.metrics[score.main]


def _resampled(scores: Sequence[Score]) -> Doubles | None:
    """Return the mean of the resamples over datasets, a dataset without them being constant; None if none has them."""
    if all(score.resampled_R is None for score in scores):
        return None
    parts = [np.array(_main(score)) if score.resampled_R is None else score.resampled_R for score in scores]
    mean_R: Doubles = np.mean(np.broadcast_arrays(*parts), axis=0)
    return mean_R


def rank_cost(row: Row, full: Row) -> float:
    """Return the cost that settings are ordered by: in money if both parts are priced, else relative to the full model."""
    cost, reference = row.cost, full.cost
    if cost.usd is not None and cost.index_usd is not None:
        return cost.usd
    return math.sqrt((cost.seconds / reference.seconds) * (cost.index_bytes / reference.index_bytes))


def find_front(rows: Sequence[Row], full: Row) -> list[Row]:
    """Return the competing settings that no other is both cheaper and better than, cheapest first."""
    front: list[Row] = []
    for row in sorted((row for row in rows if row.kept and row.competes), key=lambda row: (rank_cost(row, full), -row.share)):
        if not front or row.share > front[-1].share:
            front.append(row)
    return front


def choose_row(rows: Sequence[Row], full: Row, pick: PickConfig) -> tuple[Row | None, str]:
    """Return the cheapest row that keeps enough quality, or the best within the budget, None if none fits; and the reason."""
    able = [row for row in rows if row.kept and row.competes and row.setting.model == full.setting.model]
    if not able:
        return None, "no setting fits: quality was not measured; add labels, or set quality.known_item"
    least, budget = pick.min_quality, pick.budget_usd
    if least is None and budget is None:
        least = MIN_QUALITY
    good = [row for row in able if least is None or (row.kept and row.kept.floor >= least)]
    paid = [row for row in able if budget is None or (row.cost.usd is not None and row.cost.usd <= budget)]
    fitting = [row for row in good if row in paid]
    if not fitting:
        return None, _nothing_fits(good, paid, least, budget)
    if least is not None:
        within = f" and costs at most {show_usd(budget)}" if budget is not None else ""
        why = f"the cheapest of {len(able)} settings that keeps at least {least:.1%} of the full model's quality"
        why += f", at the lower end of its 95% interval{within}"
    else:
        best = max(fitting, key=lambda row: row.share)
        assert best.kept is not None
        fitting = [row for row in fitting if row.share >= best.kept.floor]
        why = f"the cheapest of those that no affordable setting is clearly better than, for at most {show_usd(budget or 0.0)}"
    return min(fitting, key=lambda row: (rank_cost(row, full), -row.share)), why


def _nothing_fits(good: Sequence[Row], paid: Sequence[Row], least: float | None, budget_usd: float | None) -> str:
    cheapest = min((row for row in good if row.cost.usd is not None), key=lambda row: row.cost.usd or 0.0, default=None)
    best = max(paid, key=lambda row: row.share, default=None)
    budget, reasons = show_usd(budget_usd or 0.0), []
    if cheapest is not None:
        name = f"the cheapest that keeps {least:.1%}" if least else "the cheapest"
        reasons.append(f"{name} costs {show_usd(cheapest.cost.usd or 0.0)} ({cheapest.setting.label})")
    if best is not None:
        reasons.append(f"the best for {budget} keeps {best.share:.1%} ({best.setting.label})")
    return "no setting fits: " + ("; ".join(reasons) or f"none costs as little as {budget}")
