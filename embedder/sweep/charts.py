"""Values → inline SVG and HTML without scripts: quality against cost, heat maps of depth × dim, and the page's style sheet."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 470, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 46
KINDS = {"other": "other settings", "rival": "other models", "front": "cheapest for its quality", "full": "full model"}
KINDS["chosen"] = "recommended"
"""CSS classes of points and their meaning, in drawing order: the last on top."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting in a chart."""

    x: float
    y: float
    title: str
    kind: str
    label: str = ""


def draw_front(points: Sequence[Point], axis: str, show: Callable[[float], str]) -> str:
    """Return a chart of quality against cost, cost logarithmic, with a line through the points that no other is cheaper and better than."""
    low_x, high_x = _pad([math.log10(point.x) for point in points], 0.05, 0.2)
    low_y, high_y = _pad([point.y for point in points], 0.06, 0.005)

    def place(log_x: float, y: float) -> tuple[float, float]:
        across, up = (log_x - low_x) / (high_x - low_x), (y - low_y) / (high_y - low_y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Quality kept against {html.escape(axis)}">']
    for value in _round_steps(low_y, high_y):
        _, y = place(low_x, value)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("tick", LEFT - 8, y + 4, "end", f"{round(100 * value, 1):g}%"))
    for share in (0.125, 0.375, 0.625, 0.875):
        log_x = low_x + share * (high_x - low_x)
        parts.append(_text("tick", place(log_x, low_y)[0], HEIGHT - BOTTOM + 18, "middle", show(10**log_x)))
    parts.append(_text("axis", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", axis))
    corners, best = [], -math.inf
    for point in sorted(points, key=lambda each: (each.x, -each.y)):
        if point.y > best:
            corners.append("{:.1f},{:.1f}".format(*place(math.log10(point.x), point.y)))
            best = point.y
    parts.append(f'<polyline class="front-line" points="{" ".join(corners)}"/>')
    for point in sorted(points, key=lambda each: list(KINDS).index(each.kind)):
        x, y = place(math.log10(point.x), point.y)
        radius, title = 7 if point.kind == "chosen" else 4.5, html.escape(point.title)
        parts.append(f'<circle class="{point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{title}</title></circle>')
        anchor, shift = ("end", -11) if x > WIDTH / 2 else ("start", 11)
        parts.append(_text("label", x + shift, y + 20, anchor, point.label) if point.label else "")
    return "".join([*parts, "</svg>"])


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _pad(values: Sequence[float], share: float, least: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = max(share * (high - low), least)
    return low - margin, high + margin


def _round_steps(low: float, high: float) -> list[float]:
    """Return at most eight round numbers of the range."""
    power = 10 ** math.floor(math.log10((high - low) / 7))
    step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= 7)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def draw_heat(title: str, values: Mapping[tuple[int, int], float], best: float) -> str:
    """Return a table of values by depth (rows) and dim (columns); the stronger the color, the nearer to the best."""
    depths, dims = (sorted(set(keys), reverse=True) for keys in zip(*values, strict=True))
    lowest = min(values.values())

    def cell(value: float | None) -> str:
        if value is None:
            return "<td>–</td>"
        heat = (value - lowest) / (best - lowest) if best > lowest else 0.0
        return f'<td style="--heat:{100 * heat:.0f}%">{100 * value:.1f}</td>'

    head = "".join(f"<th scope=col>{dim}</th>" for dim in dims)
    rows = [f"<tr><th scope=row>{depth}</th>{''.join(cell(values.get((depth, dim))) for dim in dims)}</tr>" for depth in depths]
    return (
        f'<table class="heat"><caption>{html.escape(title)}</caption><thead><tr><th>depth \\ dim</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


STYLE = """
:root {
  color-scheme: light dark; --ground: light-dark(#fbfaf8, #161614); --surface: light-dark(#ffffff, #1f1f1c);
  --ink: light-dark(#1c1b19, #eeece6); --quiet: light-dark(#66625a, #a29d92); --rule: light-dark(#e4e0d8, #34332f);
  --accent: light-dark(#0b7a75, #4cc2b8); --warm: light-dark(#b4481f, #ff9d6b); --grey: light-dark(#b9b3a7, #5d594f);
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }
h1, h2 { line-height: 1.15; margin: 0 0 8px; }
header p, section > p { color: var(--quiet); margin: 0 0 14px; max-width: 74ch; overflow-wrap: anywhere; }
section { margin-top: 44px; }
.card, figure, .heat, pre, .scroll { padding: 16px; background: var(--surface); border: 1px solid var(--rule); border-radius: 12px; }
.card { padding: 24px; margin-top: 28px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 20px; margin: 18px 0; }
dt, dl p { margin: 0; color: var(--quiet); font-size: 14px; }
dd { margin: 0; font-size: 30px; font-weight: 650; }
.charts, .maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 20px; }
figure, pre { margin: 0; }
figcaption, caption { text-align: left; font-weight: 600; padding-bottom: 6px; }
figure svg { display: block; width: 100%; height: auto; }
.rule { stroke: var(--rule); }
.tick, .axis { fill: var(--quiet); font-size: 12px; }
.label { fill: var(--ink); font-size: 12px; font-weight: 600; paint-order: stroke; stroke: var(--surface); stroke-width: 4px; }
.front-line { fill: none; stroke: var(--accent); stroke-width: 1.5; opacity: 0.6; }
circle.front { fill: var(--accent); }
circle.other { fill: var(--grey); opacity: 0.75; }
circle.full { fill: var(--ink); }
circle.rival { fill: none; stroke: var(--warm); stroke-width: 2; }
circle.chosen { fill: var(--warm); stroke: var(--surface); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; font-size: 14px; margin-top: 12px; }
.legend svg { width: 12px; height: 12px; margin-right: 6px; vertical-align: -1px; }
table { border-spacing: 0; font-variant-numeric: tabular-nums; font-size: 14px; }
.heat { width: 100%; border-spacing: 2px; table-layout: fixed; }
th { color: var(--quiet); font-weight: 500; }
.heat td { text-align: center; background: color-mix(in srgb, var(--accent) calc(var(--heat, 0%) * 0.5), var(--surface)); }
pre { overflow-x: auto; font-size: 14px; }
summary { cursor: pointer; font-weight: 600; font-size: 18px; }
.scroll { overflow-x: auto; margin-top: 12px; padding: 0; }
.rows th, .rows td { padding: 6px 12px; white-space: nowrap; text-align: right; border-bottom: 1px solid var(--rule); }
.rows :is(th, td):nth-child(-n + 6) { text-align: left; }
.rows .picked td { background: color-mix(in srgb, var(--warm) 16%, var(--surface)); font-weight: 600; }
ul { padding-left: 20px; color: var(--quiet); max-width: 84ch; }
"""
"""Colors follow the reader's system, light or dark; the layout follows the width."""
