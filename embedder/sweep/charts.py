"""Rows → inline SVG and HTML that need no script: quality against cost, and heat maps of depth × dim."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 470, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 46
CHARACTER_WIDTH = 7.2
"""Of a tick's label, at its size of 12."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting in a chart."""

    x: float
    y: float
    title: str
    kind: str
    """CSS class: front, other, rival, chosen or full."""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic axis of costs."""

    name: str
    show: Callable[[float], str]


def draw_front(points: Sequence[Point], axis: Axis) -> str:
    """Draw quality against cost, cost logarithmic, with a line through the points than which none is cheaper and better."""
    low_x, high_x = _log_range([point.x for point in points])
    low_y, high_y = _y_range([point.y for point in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low_x) / (high_x - low_x)
        up = (y - low_y) / (high_y - low_y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Quality kept against {html.escape(axis.name)}">']
    for value in _steps(low_y, high_y):
        _, y = place(10**low_x, value)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * value:.0f}%</text>')
    ticks = [(place(value, low_y)[0], axis.show(value)) for value in _log_ticks(low_x, high_x)]
    for x, text in _spaced(ticks):
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{html.escape(text)}</text>')
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(axis.name)}</text>'
    )
    steps = [place(point.x, point.y) for point in _front(points)]
    corners = [f"{x:.1f},{y:.1f}" for x, y in steps]
    parts.append(f'<polyline class="front-line" points="{" ".join(corners)}"/>')
    for point in sorted(points, key=lambda each: _ORDER.index(each.kind)):
        x, y = place(point.x, point.y)
        radius = 7 if point.kind == "chosen" else 4.5
        parts.append(
            f'<circle class="{point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{html.escape(point.title)}</title></circle>'
        )
        if point.label:
            anchor, shift = ("end", -11) if x > WIDTH / 2 else ("start", 11)
            parts.append(
                f'<text class="label" x="{x + shift:.1f}" y="{y + 20:.1f}" text-anchor="{anchor}">{html.escape(point.label)}</text>'
            )
    return "".join([*parts, "</svg>"])


_ORDER = ("other", "rival", "front", "full", "chosen")


def _front(points: Sequence[Point]) -> list[Point]:
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.x, -each.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.05 * (high - low), 0.05)
    return low - margin, high + margin


def _y_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.005)
    return max(low - margin, 0.0), high + margin


def _steps(low: float, high: float) -> list[float]:
    step = next(size for size in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / size <= 7)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Give three to seven round numbers: powers of ten, or where those are too few 1, 2 and 5 times them."""
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [
            factor * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for factor in factors
            if low <= math.log10(factor * 10.0**power) <= high
        ]
        if len(ticks) >= 3:
            break
    return ticks[:: max(1, math.ceil(len(ticks) / 7))]


def _spaced(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Leave out labels that would touch the one before, or say the same."""
    kept: list[tuple[float, str]] = []
    for x, text in ticks:
        if not kept or (text != kept[-1][1] and x - kept[-1][0] > CHARACTER_WIDTH * (len(text) + len(kept[-1][1])) / 2 + CHARACTER_WIDTH):
            kept.append((x, text))
    return kept


def draw_heat(title: str, values: Mapping[tuple[int, int], float], best: float) -> str:
    """Lay out values by depth (rows) and dim (columns); the stronger the colour, the nearer to the best."""
    depths = sorted({depth for depth, _ in values}, reverse=True)
    dims = sorted({dim for _, dim in values}, reverse=True)
    lowest = min(values.values())
    head = "".join(f"<th scope=col>{dim}</th>" for dim in dims)
    rows = []
    for depth in depths:
        cells = []
        for dim in dims:
            value = values.get((depth, dim))
            if value is None:
                cells.append("<td>–</td>")
                continue
            heat = 0.0 if best <= lowest else max(0.0, min(1.0, (value - lowest) / (best - lowest)))
            cells.append(f'<td style="--heat:{100 * heat:.0f}%">{100 * value:.1f}</td>')
        rows.append(f"<tr><th scope=row>{depth}</th>{''.join(cells)}</tr>")
    caption = f"<caption>{html.escape(title)}</caption>"
    corner = '<th class="corner">depth \\ dim</th>'
    return f'<table class="heat">{caption}<thead><tr>{corner}{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
