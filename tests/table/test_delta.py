"""The table is plain Delta: one commit changes it, one of two writers wins, and other tools can read it."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import lancedb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from embedder.core.errors import CommitError, StorageError, TableDamagedError
from embedder.core.schema import table_schema
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.core.units import Part
from embedder.table.delta import Change, commit_table, read_table
from embedder.table.quarantine import sync_quarantine
from embedder.table.run_record import read_record
from tests.core.test_spec import SPEC
from tests.faulty_proxy import NO_FAULTS, FaultyProxy, break_first
from tests.table.conftest import make_documents, make_vectors

SCHEMA = table_schema(pa.schema(list(make_documents().schema)[5:]), store_text=True)


def info_of(spec: EmbeddingSpec = SPEC) -> Mapping[str, Any]:
    return {"spec": spec.model_dump(), "space_id": spec.space_id, "bucket_bits": 0}


def change(add: tuple[Part, ...] = (), remove: tuple[str, ...] = (), spec: EmbeddingSpec = SPEC, replaces: bool = False) -> Change:
    return Change(add, remove, SCHEMA, info_of(spec), replaces)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "table")


def test_there_is_no_table_before_the_first_commit(uri: str) -> None:
    assert read_table(Location(uri)) is None


def test_adds_and_removes_are_one_version(uri: str, write_unit: Callable[..., Part]) -> None:
    old, new = write_unit(key="a" * 16), write_unit(key="b" * 16, first_id=10)
    assert commit_table(Location(uri), change((old,)), None) == 0
    state = read_table(Location(uri))
    assert state is not None
    assert state.rows == {old.name: 6}
    assert state.spec == SPEC
    assert commit_table(Location(uri), change((new,), (old.name,)), state) == 1
    after = read_table(Location(uri))
    assert after is not None
    assert after.rows == {new.name: 6}
    assert DeltaTable(uri, version=0).to_pyarrow_table().num_rows == 6
    assert {row["doc_id"] for row in DeltaTable(uri, version=0).to_pyarrow_table().to_pylist()} == {"d0", "d1", "d2"}


def test_the_second_of_two_runs_planned_on_one_version_is_refused(uri: str, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(uri), change((write_unit(key="a" * 16),)), None)
    state = read_table(Location(uri))
    commit_table(Location(uri), change((write_unit(key="b" * 16),)), state)
    with pytest.raises(CommitError, match="another run published first"):
        commit_table(Location(uri), change((write_unit(key="b" * 16),)), state)
    after = read_table(Location(uri))
    assert after is not None
    assert sum(after.rows.values()) == 12


def test_only_one_of_two_first_runs_creates_the_table(uri: str, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(uri), change((write_unit(),)), None)
    with pytest.raises(CommitError, match="another run created the table first"):
        commit_table(Location(uri), change((write_unit(),)), None)


def test_another_spec_replaces_everything_and_old_versions_stay_readable(uri: str, write_unit: Callable[..., Part]) -> None:
    old, new = write_unit(key="a" * 16), write_unit(key="b" * 16, first_id=10)
    commit_table(Location(uri), change((old,)), None)
    other = SPEC.model_copy(update={"depth": 3})
    commit_table(Location(uri), change((new,), spec=other, replaces=True), read_table(Location(uri)))
    state = read_table(Location(uri))
    assert state is not None
    assert state.rows == {new.name: 6}
    assert state.spec == other
    assert '"depth": 3' in str(DeltaTable(uri).metadata().description)
    assert DeltaTable(uri, version=0).to_pyarrow_table().num_rows == 6


def test_a_table_of_another_writer_is_refused(uri: str) -> None:
    pl.DataFrame({"a": [1]}).write_delta(uri)
    with pytest.raises(CommitError, match="embedder did not write"):
        read_table(Location(uri))


def test_files_that_another_tool_rewrote_are_refused(uri: str, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(uri), change((write_unit(key="a" * 16), write_unit(key="b" * 16))), None)
    DeltaTable(uri).optimize.compact()
    with pytest.raises(TableDamagedError, match=r"which embedder did not write: another tool.*restore the version before"):
        read_table(Location(uri))


def test_a_table_restored_after_another_tools_rewrite_reads_as_before(uri: str, write_unit: Callable[..., Part]) -> None:
    parts = tuple(write_unit(key=key * 16) for key in "ab")
    commit_table(Location(uri), change(parts), None)
    DeltaTable(uri).optimize.compact()
    DeltaTable(uri).restore(0)
    state = read_table(Location(uri))
    assert state is not None
    assert (set(state.rows), state.spec) == ({part.name for part in parts}, SPEC)


def test_a_table_restored_to_before_a_replacement_has_its_old_space(uri: str, write_unit: Callable[..., Part]) -> None:
    old, new, other = write_unit(key="a" * 16), write_unit(key="b" * 16), SPEC.model_copy(update={"depth": 3})
    commit_table(Location(uri), change((old,)), None)
    commit_table(Location(uri), change((new,), spec=other, replaces=True), read_table(Location(uri)))
    for version, spec in ((0, SPEC), (1, other), (3, SPEC)):  # the last one restores a version that was itself restored
        DeltaTable(uri).restore(version)
        state = read_table(Location(uri))
        assert state is not None
        assert state.spec == read_record(Location(uri)).spec == spec
    DeltaTable(uri).alter.set_table_description("another tool")
    assert read_record(Location(uri)).spec == SPEC


def test_a_table_restored_as_of_a_time_is_refused_until_it_is_restored_by_number(uri: str, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(uri), change((write_unit(key="a" * 16),)), None)
    before = datetime.now(UTC)
    commit_table(Location(uri), change((write_unit(key="b" * 16),)), read_table(Location(uri)))
    DeltaTable(uri).restore(before)
    for read in (read_table, read_record):
        with pytest.raises(StorageError, match=r"version 2 restored the table as of a time.*restore\(VERSION\)"):
            read(Location(uri))
    DeltaTable(uri).restore(0)
    assert read_record(Location(uri)).spec == SPEC


def test_a_restored_version_whose_record_was_cleaned_up_is_refused(uri: str, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(uri), change((write_unit(),)), None)
    DeltaTable(uri).alter.set_table_description("another tool")
    DeltaTable(uri).restore(0)
    DeltaTable(uri).create_checkpoint()
    Path(uri, "_delta_log", f"{0:020d}.json").unlink()
    with pytest.raises(StorageError, match=r"version 0 was restored, whose run record is no longer in the log; restore a later one"):
        read_record(Location(uri))


def test_quarantined_records_follow_their_parts(uri: str, write_unit: Callable[..., Part]) -> None:
    old, new = write_unit(key="a" * 16, quarantined=2), write_unit(key="b" * 16, quarantined=1)
    commit_table(Location(uri), change((old,)), None)
    assert sync_quarantine(Location(uri)) == 2
    commit_table(Location(uri), change((new,), (old.name,)), read_table(Location(uri)))
    assert sync_quarantine(Location(uri)) == 1
    assert sync_quarantine(Location(uri)) == 1
    assert DeltaTable(f"{uri}/_quarantine").to_pyarrow_table()["reason"].to_pylist() == ["null_text"]


def test_a_run_without_rejected_records_has_an_empty_quarantine(uri: str, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(uri), change((write_unit(),)), None)
    assert sync_quarantine(Location(uri)) == 0
    assert DeltaTable(f"{uri}/_quarantine").to_pyarrow_table().num_rows == 0


def read_deltalake(uri: str) -> pa.Table:
    return DeltaTable(uri).to_pyarrow_table()


def read_polars(uri: str) -> pa.Table:
    return pl.scan_delta(uri).collect().to_arrow()


def read_duckdb(uri: str) -> pa.Table:
    return duckdb.connect().read_parquet(DeltaTable(uri).file_uris()).to_arrow_table()


def read_pandas(uri: str) -> pa.Table:
    return pa.Table.from_pandas(pd.concat(pd.read_parquet(file) for file in DeltaTable(uri).file_uris()))


def read_lancedb(uri: str) -> pa.Table:
    rows = DeltaTable(uri).to_pyarrow_table()
    vectors = pa.FixedSizeListArray.from_arrays(rows["embedding"].combine_chunks().flatten(), 8)
    store = lancedb.connect(f"{uri}-lance").create_table(
        "docs", rows.set_column(rows.schema.names.index("embedding"), "embedding", vectors)
    )
    found = store.search(np.asarray(rows["embedding"][0].as_py(), np.float32), vector_column_name="embedding").limit(1).to_list()
    assert found[0]["doc_id"] == rows["doc_id"][0].as_py()
    return store.to_arrow()


@pytest.mark.parametrize("read", [read_deltalake, read_polars, read_duckdb, read_pandas, read_lancedb])
def test_the_table_reads_unchanged_in(uri: str, write_unit: Callable[..., Part], read: Callable[[str], pa.Table]) -> None:
    commit_table(Location(uri), change((write_unit(),)), None)
    rows = read(uri)
    assert rows["doc_id"].to_pylist() == ["d0", "d0", "d1", "d1", "d2", "d2"]
    assert rows["text"].to_pylist()[3] == "🦊 vier"
    assert list(rows["tags"].to_pylist()[0]) == ["a", "b"]
    assert rows["origin"].to_pylist()[0]["year"] == 1999
    assert np.array_equal(np.array([list(vector) for vector in rows["embedding"].to_pylist()], np.float32), make_vectors(6))


def test_the_run_record_is_found_behind_many_commits_of_other_tools(uri: str, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(uri), change((write_unit(),)), None)
    for number in range(12):
        DeltaTable(uri).alter.set_table_description(f"{number}")
    state = read_table(Location(uri))
    assert state is not None
    assert state.spec == SPEC


def test_a_log_whose_run_record_another_tool_removed_is_refused_with_the_reason(uri: str, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(uri), change((write_unit(),)), None)
    DeltaTable(uri).alter.set_table_description("another tool")
    DeltaTable(uri).create_checkpoint()
    Path(uri, "_delta_log", f"{0:020d}.json").unlink()
    with pytest.raises(CommitError, match=r"no run record in its log.*restore the commits it removed"):
        read_table(Location(uri))


def test_missing_parts_are_not_published(uri: str, write_unit: Callable[..., Part]) -> None:
    part = write_unit()
    Path(uri, part.name).unlink()
    with pytest.raises(CommitError, match=r"1 parts were deleted during this run.*nothing was published"):
        commit_table(Location(uri), change((part,)), None)
    assert read_table(Location(uri)) is None


LOG = {"method": "PUT", "contains": "_delta_log"}


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["reset_after", "reset_before", "error", "slow_down", "truncate"])
def test_a_commit_on_a_bad_connection_is_made_once(bucket: str, proxy: FaultyProxy, write_unit: Callable[..., Part], fault: str) -> None:
    old, new = (write_unit(key=key * 16, uri=bucket) for key in "ab")
    proxy.inject(break_first(1, fault, **LOG))
    assert commit_table(Location(bucket), change((old,)), None) == 0
    proxy.inject(break_first(1, fault, **LOG))
    assert commit_table(Location(bucket), change((new,), (old.name,)), read_table(Location(bucket))) == 1
    proxy.inject(break_first(1, fault, **LOG))
    assert commit_table(Location(bucket), change((old,), replaces=True), read_table(Location(bucket))) >= 2
    proxy.inject(NO_FAULTS)
    state = read_table(Location(bucket))
    assert state is not None
    assert state.rows == {old.name: 6}
    assert [entry["operation"] for entry in DeltaTable(bucket).history()].count("WRITE") == 2


@pytest.mark.s3
def test_the_second_of_two_runs_is_refused_on_a_bad_connection(bucket: str, proxy: FaultyProxy, write_unit: Callable[..., Part]) -> None:
    commit_table(Location(bucket), change((write_unit(key="a" * 16, uri=bucket),)), None)
    state, part = read_table(Location(bucket)), write_unit(key="b" * 16, uri=bucket)
    proxy.inject(break_first(1, "reset_after", **LOG))
    commit_table(Location(bucket), change((part,)), state)
    proxy.inject(break_first(1, "reset_after", **LOG))
    with pytest.raises(CommitError, match="another run published first"):
        commit_table(Location(bucket), change((part,)), state)


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["reset_after", "truncate", "throttle"])
def test_a_table_and_its_quarantine_are_read_and_written_over_a_bad_connection(
    bucket: str, proxy: FaultyProxy, write_unit: Callable[..., Part], fault: str
) -> None:
    part = write_unit(quarantined=2, uri=bucket)
    commit_table(Location(bucket), change((part,)), None)
    proxy.inject(break_first(1, fault))
    state = read_table(Location(bucket))
    assert state is not None
    assert state.rows == {part.name: 6}
    before = proxy.injected(fault)
    proxy.inject(break_first(3, fault))
    assert sync_quarantine(Location(bucket)) == 2
    assert proxy.injected(fault) == before + 3
