"""A reader retries a shard after its worker died, and reports one that kills its worker too often in one run."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from embedder.config.output import OutputConfig
from embedder.config.source import SourceConfig
from embedder.core.columns import PartNames
from embedder.core.plan import Plan
from embedder.core.spec import EmbeddingSpec
from embedder.core.units import Stats, Task
from embedder.pipeline import stages
from embedder.pipeline.rows import StageContext
from embedder.pipeline.stages import cut_row, prepare_tasks, tasks_row
from embedder.source.selection import select_shards
from embedder.source.shards import list_shards
from embedder.table.attempts import ATTEMPTS_FOLDER, Attempts
from tests.tables import as_columns

NO_PLAN = Plan(as_columns([]), {}, (), PartNames.of(()), PartNames.of(()), {})

MAX_ATTEMPTS = 3


class DeathError(BaseException):
    """Stands for the death of the worker, after which no cleanup runs."""


def die(_: int) -> None:
    raise DeathError


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(5)))
    return Task("0123456789abcdef", "0" * 32, tuple(list_shards(SourceConfig(uri=str(tmp_path / "a.jsonl"))).shards))


def make_context(folder: Path, run_id: str) -> StageContext:
    spec = EmbeddingSpec(
        model="openai:x", base_url="http://x", revision=None, model_checksum="", depth=0, final_norm="none", pooling="mean",
        layer_norm=False, prompt="", query_prompt="", max_tokens=30, chunking=True, overlap_tokens=0, dim=8, normalize=True,
    )  # fmt: skip
    source, output = SourceConfig(uri="in", rows_per_unit=2), OutputConfig(uri=str(folder / "table"))
    return StageContext(source, output, spec, "", pa.schema([]), MAX_ATTEMPTS, None, None, None, run_id)


def read(task: Task, context: StageContext) -> tuple[int, str | None]:
    """Return the number of rows, and the error in the last one."""
    rows = list(prepare_tasks(tasks_row([task], NO_PLAN), context))
    return len(rows), rows[-1]["error"]


def die_reading(task: Task, context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die in the first unit, so that its mark stays."""
    with monkeypatch.context() as patch:
        patch.setattr(stages, "stream_units", lambda *_: map(die, [0]))
        patch.setattr(stages.Attempts, "end", lambda *_: None)
        patch.setattr(stages.Attempts, "forget", lambda *_: None)
        with pytest.raises(DeathError):
            read(task, context)


def marks(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "table" / ATTEMPTS_FOLDER).glob("*")]


def test_a_shard_that_was_in_progress_whenever_a_cluster_was_lost_is_read(tmp_path: Path, task: Task, monkeypatch) -> None:
    for number in range(MAX_ATTEMPTS + 1):
        die_reading(task, make_context(tmp_path, f"run{number}"), monkeypatch)
    assert len(marks(tmp_path)) == MAX_ATTEMPTS + 1
    assert read(task, make_context(tmp_path, "last")) == (3, None)
    assert marks(tmp_path) == [], "marks of the runs that died are removed too"


def test_a_shard_that_kills_its_reader_too_often_in_one_run_is_reported(tmp_path: Path, task: Task, monkeypatch) -> None:
    context = make_context(tmp_path, "run")
    for _ in range(MAX_ATTEMPTS):
        die_reading(task, context, monkeypatch)
    count, error = read(task, context)
    assert count == 1
    assert error is not None
    assert "reading on from row 0 took its worker down 3 times" in error
    assert marks(tmp_path) == [], "the next run tries again"


def test_a_filtered_shard_of_a_folder_reaches_its_reader_and_what_is_left_out_is_counted(tmp_path: Path, task: Task) -> None:
    (tmp_path / "lang=de").mkdir()
    (tmp_path / "a.jsonl").rename(tmp_path / "lang=de" / "a.jsonl")
    source = SourceConfig(uri=str(tmp_path / "lang=de"), filter="text != 'document 1'", metadata_columns=["lang"])
    listing, metadata = select_shards(source, list_shards(source))
    filtered = replace(task, shards=tuple(listing.shards))
    row = tasks_row([filtered], NO_PLAN)
    assert [Task.from_fields(each["task"]) for each in json.loads(row["tasks"])] == [filtered]
    context = replace(make_context(tmp_path, "run"), source=source, metadata=metadata)
    units = [each["unit"] for each in prepare_tasks(row, context)]
    counted = [Stats(**unit["stats"]) for unit in units if unit is not None]
    assert (sum(each.documents for each in counted), sum(each.filtered for each in counted)) == (5, 1)


def test_a_task_that_cannot_be_read_leaves_the_others_of_its_row(tmp_path: Path, task: Task) -> None:
    gone = replace(task, key="f" * 16, shards=(replace(task.shards[0], uri=str(tmp_path / "gone.jsonl")),))
    rows = list(prepare_tasks(tasks_row([task, gone, replace(task, key="e" * 16)], NO_PLAN), make_context(tmp_path, "run")))
    assert [(row["key"], row["error"] is None) for row in rows] == [
        *[(task.key, True)] * 3,
        (gone.key, False),
        *[("e" * 16, True)] * 3,
    ]


def test_documents_that_a_reader_leaves_to_the_encoders_are_cut_as_by_the_reader(tmp_path: Path, task: Task) -> None:
    context = make_context(tmp_path, "run")
    whole = list(prepare_tasks(tasks_row([replace(task, cut_by_encoders=True)], NO_PLAN), context))
    Attempts(context.folder).begin(f"{whole[0]['name']}.cut.lost")  # of a run whose cluster was lost
    assert [row["unit"] and row["unit"]["chunks"] for row in whole] == [b""] * 3
    cut = [cut_row(row, context, Attempts.listed(context.folder)) for row in whole]
    for found, expected in zip(cut, prepare_tasks(tasks_row([task], NO_PLAN), context), strict=True):
        assert found["unit"] is not None
        assert expected["unit"] is not None
        for row in (found, expected):
            row["unit"]["stats"]["read_seconds"] = 0
        assert found == expected
    assert marks(tmp_path) == []


def test_a_unit_that_kills_the_workers_that_cut_it_fails_its_task(tmp_path: Path, task: Task, monkeypatch) -> None:
    context = make_context(tmp_path, "run")
    first, *_ = prepare_tasks(tasks_row([replace(task, cut_by_encoders=True)], NO_PLAN), context)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "cut_unit", lambda *_: die(0))
        patch.setattr(stages.Attempts, "end", lambda *_: None)
        patch.setattr(stages.Attempts, "forget", lambda *_: None)
        for _ in range(MAX_ATTEMPTS):
            with pytest.raises(DeathError):
                cut_row(first, context, Attempts.listed(context.folder))
    failed = cut_row(first, context, Attempts.listed(context.folder))
    assert (failed["name"], failed["unit"]) == (None, None)
    assert failed["error"] is not None
    assert "a.jsonl: reading on from row 0 took its worker down 3 times" in failed["error"]
    assert marks(tmp_path) == [], "the next run tries again"
