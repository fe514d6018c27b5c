"""Charts hold what they are given, escaped, and within their frame."""

import re
from itertools import pairwise

from embedder.sweep.charts import HEIGHT, WIDTH, Axis, Point, draw_front, draw_heat
from embedder.sweep.number_format import show_seconds

AXIS = Axis("time", show_seconds)


def test_every_point_lies_within_the_frame_and_says_what_it_is() -> None:
    points = [Point(10.0**n, 0.3 + n / 10, f"<{n}> & more", "front" if n else "chosen", "here" if not n else "") for n in range(6)]
    chart = draw_front(points, AXIS)
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert len(places) == 6
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    assert "&lt;0&gt; &amp; more" in chart
    assert "<0>" not in chart


def test_points_that_are_all_alike_are_drawn_all_the_same() -> None:
    chart = draw_front([Point(5.0, 1.0, "a", "full"), Point(5.0, 1.0, "b", "chosen")], AXIS)
    assert chart.count("<circle") == 2
    assert "nan" not in chart


def test_the_line_joins_what_none_is_cheaper_and_better_than() -> None:
    points = [Point(1.0, 0.5, "a", "front"), Point(2.0, 0.4, "b", "other"), Point(3.0, 0.9, "c", "front")]
    corners = re.search(r'points="([^"]+)"', draw_front(points, AXIS))
    assert corners is not None
    assert len(corners[1].split()) == 2


def test_a_heat_map_has_a_cell_for_each_depth_and_dim_and_a_dash_for_what_is_missing() -> None:
    heat = draw_heat("kept", {(6, 384): 1.0, (6, 64): 0.5, (3, 384): 0.25}, 1.0)
    assert heat.count("<td") == 4
    assert "<td>–</td>" in heat
    assert '--heat:100%">100.0<' in heat
    assert '--heat:0%">25.0<' in heat


def test_labels_of_ticks_do_not_touch() -> None:
    points = [Point(x, 0.5, "", "other") for x in (0.00031, 0.0017)]
    chart = draw_front(points, Axis("cost", lambda usd: f"${usd:.4f}"))
    places = sorted(float(x) for x in re.findall(r'class="tick" x="([\d.]+)" y="\d+" text-anchor="middle"', chart))
    assert len(places) >= 3
    assert min(after - before for before, after in pairwise(places)) > 7 * 7
