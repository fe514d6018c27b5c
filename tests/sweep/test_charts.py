"""Charts hold every value, escaped, and within their frame."""

import re
from itertools import pairwise

import pytest

from embedder.sweep.charts import HEIGHT, WIDTH, Point, draw_front, draw_heat
from embedder.sweep.cost import show_seconds


def test_every_point_is_within_the_frame_with_its_title_escaped() -> None:
    points = [Point(10.0**n, 0.3 + n / 10, f"<{n}> & more", "front" if n else "chosen", "here" if not n else "") for n in range(6)]
    chart = draw_front(points, "time", show_seconds)
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert len(places) == 6
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    assert "&lt;0&gt; &amp; more" in chart
    assert "<0>" not in chart


def test_equal_points_are_drawn() -> None:
    chart = draw_front([Point(5.0, 1.0, "a", "full"), Point(5.0, 1.0, "b", "chosen")], "time", show_seconds)
    assert chart.count("<circle") == 2
    assert "nan" not in chart


def test_the_line_joins_the_points_that_no_other_beats() -> None:
    points = [Point(1.0, 0.5, "a", "front"), Point(2.0, 0.4, "b", "other"), Point(3.0, 0.9, "c", "front")]
    corners = re.search(r'points="([^"]+)"', draw_front(points, "time", show_seconds))
    assert corners is not None
    assert len(corners[1].split()) == 2


def test_a_heat_map_has_a_cell_for_each_depth_and_dim_and_a_dash_for_a_missing_value() -> None:
    heat = draw_heat("kept", {(6, 384): 1.0, (6, 64): 0.5, (3, 384): 0.25}, 1.0)
    assert heat.count("<td") == 4
    assert "<td>–</td>" in heat
    assert '--heat:100%">100.0<' in heat
    assert '--heat:0%">25.0<' in heat


def test_tick_labels_do_not_touch() -> None:
    points = [Point(x, 0.5, "", "other") for x in (0.00031, 0.0017)]
    chart = draw_front(points, "cost", lambda usd: f"${usd:.4f}")
    places = sorted(float(x) for x in re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle"', chart))
    assert len(places) >= 3
    assert min(after - before for before, after in pairwise(places)) > 7 * 7


@pytest.mark.parametrize(("shares", "shown"), [((0.975, 1.0), "97.5%"), ((-0.2, 1.0), "-20%"), ((0.5, 400.0), "10000%")])
def test_every_range_of_quality_has_exact_ticks_within_the_frame(shares: tuple[float, float], shown: str) -> None:
    chart = draw_front([Point(x, share, "", "other") for x, share in enumerate(shares, 1)], "time", show_seconds)
    assert f">{shown}<" in chart
    assert all(0 < float(y) < HEIGHT for y in re.findall(r'cy="([-\d.]+)"', chart))
