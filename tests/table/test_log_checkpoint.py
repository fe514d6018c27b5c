"""A checkpoint shortens the log without losing the run record that planning needs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from embedder.core.storage import Location
from embedder.core.units import Part
from embedder.table.delta import commit_table, read_table
from embedder.table.log_checkpoint import write_checkpoint
from embedder.table.quarantine import read_quarantined, sync_quarantine
from tests.table.test_delta import change


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "table")


def age_log(uri: str, days: float) -> None:
    for path in Path(uri).glob("**/_delta_log/*"):
        moment = path.stat().st_mtime - days * 86_400
        os.utime(path, (moment, moment))


def log_of(uri: str) -> set[str]:
    return {path.name for path in Path(uri, "_delta_log").iterdir()}


def test_the_run_record_survives_the_cleanup_of_the_log(uri: str, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(uri), change((write_unit(),)), None)
    sync_quarantine(Location(uri))
    for number in range(3):
        DeltaTable(uri).alter.set_table_description(f"another tool was here {number} times")
    before = read_table(Location(uri))
    age_log(uri, 40)
    version, removed = write_checkpoint(Location(uri))
    assert version == 4
    assert removed == 4
    age_log(uri, 40)
    assert write_checkpoint(Location(uri)) == (4, 0), "a second one finds nothing to do"
    assert {name for name in log_of(uri) if name.endswith(".json")} == {f"{4:020d}.json"}
    after = read_table(Location(uri))
    assert before is not None
    assert after is not None
    own = {name: after.info[name] for name in ("commit_id", "checksum")}
    assert after.info == {**before.info, **own, "maintenance": "checkpoint"}
    assert after.rows == before.rows
    commit_table(Location(uri), change(remove=tuple(after.rows)), after)
    assert DeltaTable(uri).to_pyarrow_table().num_rows == 0


def test_the_quarantine_is_read_by_name(uri: str, write_unit: Callable[..., Part]) -> None:
    part = write_unit(quarantined=2)
    commit_table(Location(uri), change((part, write_unit(key="b" * 16))), None)
    assert read_quarantined(Location(uri)) == {}
    sync_quarantine(Location(uri))
    assert read_quarantined(Location(uri)) == {part.name: (part.quarantine_bytes, 2)}
