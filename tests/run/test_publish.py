"""A run whose table was compacted and vacuumed while it ran says so, and publishes nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedder.core.errors import CommitError, StorageError, TableDamagedError
from embedder.core.storage import Location
from embedder.run import embed
from embedder.run.publish import missing_parts_explained
from embedder.run.summary import Outcome
from embedder.table.compact import compact_table
from embedder.table.delta import read_table
from embedder.table.reuse import index_parts
from embedder.table.vacuum import vacuum_table
from tests.table.conftest import CORPUS
from tests.tables import MadeTable


@pytest.fixture
def run_plan(tmp_path: Path) -> Any:
    table = MadeTable(str(tmp_path / "table"), rows_per_unit=1)
    table.follow(CORPUS)
    output = SimpleNamespace(location=table.location, publish_every=None)
    config, model = SimpleNamespace(output=output, gate=None), SimpleNamespace(rotation_WW=None, calibration=None)
    return SimpleNamespace(table=read_table(table.location), config=config, model=model, spec=SimpleNamespace(exit="native"))


def compact_and_vacuum(location: Location) -> None:
    compact_table(location, 10_000_000)
    vacuum_table(location, 0, insist=True)


def test_parts_that_maintenance_removed_meanwhile_are_named_as_such(run_plan: Any) -> None:
    location = run_plan.config.output.location
    compact_and_vacuum(location)
    with (
        pytest.raises(CommitError, match=r"version 1 while this run went by version 0.*run again"),
        missing_parts_explained(run_plan, lambda: run_plan.table),
    ):
        index_parts(list(run_plan.table.rows), location)


def test_a_part_that_is_gone_from_a_table_that_stayed_names_the_repair(run_plan: Any) -> None:
    location, [name, *_] = run_plan.config.output.location, run_plan.table.rows
    Path(location.uri, name).unlink()
    with (
        pytest.raises(TableDamagedError, match=rf"{name}: not on storage; .*--check --deep --repair"),
        missing_parts_explained(run_plan, lambda: run_plan.table),
    ):
        index_parts([name], location)
    with pytest.raises(StorageError, match=r"^/nowhere/a: not on storage"), missing_parts_explained(run_plan, lambda: run_plan.table):
        index_parts(["a"], Location("/nowhere"))


def test_a_run_whose_units_failed_for_it_ends_with_that_message(run_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_meanwhile(*_: Any) -> Outcome:
        compact_and_vacuum(run_plan.config.output.location)
        return Outcome(failures={"key": "part: not found; check the path"})

    monkeypatch.setattr(embed, "embed", fail_meanwhile)
    monkeypatch.setattr(embed, "replan_without_broken_shards", lambda *_: None)
    with pytest.raises(CommitError, match="maintenance or another run published version 1"):
        embed.run_embed(run_plan)
