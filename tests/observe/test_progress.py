"""Progress is right in whatever order units finish, and each new step is logged once."""

import itertools

import pytest

from embedder.core.units import Part, PartName, Shard, Stats, Task
from embedder.observe.progress import Display, Meter
from tests.tables import as_columns

TASKS = [Task(number * 16, "1" * 32, (Shard(f"{number}.jsonl", "v", 100),)) for number in "01"]
UNITS = ((0, 10, False), (10, 20, False), (20, 30, True))


def land(meter: Meter, task: Task, unit: tuple[int, int, bool]) -> None:
    meter.land(Part(str(PartName(task.key, task.version, *unit)), 10, 1000, Stats(documents=10, text_bytes=30)))


@pytest.mark.parametrize("order", list(itertools.permutations(UNITS)))
def test_a_shard_is_done_when_all_its_units_finished_in_any_order(order: tuple[tuple[int, int, bool], ...]) -> None:
    meter = Meter(as_columns(TASKS), None)
    shares = []
    for unit in order:
        land(meter, TASKS[0], unit)
        shares.append(round(meter.share, 2))
    assert shares == [0.15, 0.3, 0.5]
    assert not meter._open_text, "a finished shard leaves nothing open"
    land(meter, TASKS[1], UNITS[0])
    assert meter.share == pytest.approx(0.5 + 0.3 * 100 / 90 / 2), "measured: 100 / 90 source bytes per byte of text"


def test_a_slice_that_finishes_after_another_failed_leaves_nothing_open() -> None:
    meter = Meter(as_columns(TASKS), None)
    meter.fail(TASKS[0].key)
    land(meter, TASKS[0], UNITS[2])
    assert not meter._open_text
    assert meter.share == 0.5


def test_without_a_terminal_each_new_step_is_logged_at_once_and_progress_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr("embedder.observe.progress.time.monotonic", lambda: now)
    caplog.set_level("INFO", "embedder")
    meter = Meter(as_columns(TASKS), None)
    with Display() as display:
        display.refresh(meter)
        for now in (109.0, 111.0, 112.0):
            land(meter, TASKS[0], UNITS[int(now) % 3])
            display.refresh(meter)
        for step, done in (("embed", 1), ("embed", 2), ("score", 0)):
            display.report(step, done, 9 if step == "embed" else 0)
    assert [record.getMessage()[:22] for record in caplog.records] == [" 30% · 20 documents · ", "embed: 1 of 9 texts", "score"]
    assert caplog.records[0].fields["documents"] == 20  # type: ignore[attr-defined]
