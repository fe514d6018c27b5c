"""A table is read as it was written, or refused by the name of what is damaged, edited or changed by another tool."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from embedder.core.errors import CommitError, StorageError, TableDamagedError, VersionGoneError
from embedder.core.quantization import Ranges
from embedder.core.storage import Location
from embedder.search.exact import open_table
from embedder.stores.load import begin, read_version
from embedder.stores.rows import read_parts
from embedder.table.check import check_table
from embedder.table.check_rows import check_rows
from embedder.table.checksums import checksum_of
from embedder.table.compact import compact_table
from embedder.table.delta import read_table, require_table
from embedder.table.diff import name_rows, read_changes
from embedder.table.history import read_history
from embedder.table.log_checkpoint import write_checkpoint
from embedder.table.log_files import read_checksums
from embedder.table.parts import FOOTER_KEY, encode_parquet
from embedder.table.run_record import read_record
from embedder.table.vacuum import vacuum_table
from jobs.history import main as history
from jobs.maintain import main as maintain
from tests.faulty_proxy import FaultyProxy, break_first
from tests.stores.conftest import RANGES, TypedTable, corpus_of
from tests.table.conftest import CORPUS
from tests.tables import SPEC, MadeTable, vector_of

EDITED = {**CORPUS, "q": [("b", "eight", "x")]}


@pytest.fixture
def local(tmp_path: Path) -> MadeTable:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    return table


def largest_part(table: MadeTable) -> Path:
    return max((Path(table.uri, str(name)) for name in table.names()), key=lambda path: path.stat().st_size)


def load(location: Location) -> int:
    version = read_version(location)
    begin(version)
    return sum(rows.num_rows for rows in read_parts(location, list(version.rows), version.schema))


READS: dict[str, Callable[[Location], object]] = {
    "search": lambda location: open_table(location).find(vector_of("two"), 100, None),
    "load": load,
    "diff": lambda location: list(name_rows(read_changes(location, None, None))),
    "compact": lambda location: compact_table(location, 10_000_000),
}


def flip_page(path: Path) -> None:
    """Flip a bit in a page of the vectors."""
    column = pq.read_metadata(path).row_group(0).column(pq.read_metadata(path).num_columns - 1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 4
    path.write_bytes(data)


PART_DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit flipped": flip_page,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "gone": Path.unlink,
    "no parquet": lambda path: path.write_bytes(b"x" * path.stat().st_size),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("damage", PART_DAMAGES)
def test_a_damaged_part_is_named_by_every_reader(local: MadeTable, damage: str, read: str) -> None:
    broken = largest_part(local)
    PART_DAMAGES[damage](broken)
    with pytest.raises(TableDamagedError, match=rf"{broken.name}.*run jobs\.maintain with --check --deep --repair") as found:
        READS[read](local.location)
    assert "\n" not in str(found.value)


def test_the_log_and_its_checkpoints_keep_the_checksum_of_every_part(local: MadeTable) -> None:
    compact_table(local.location, 10_000_000)
    write_checkpoint(local.location)
    local.follow(EDITED)
    names = list(map(str, local.names()))
    checksums = read_checksums(local.location)
    assert {name: checksums[name] for name in names} == {name: checksum_of(Path(local.uri, name).read_bytes()) for name in names}


def test_an_edit_of_equal_size_and_a_swap_are_found(local: MadeTable) -> None:
    first, second = sorted(Path(local.uri).glob("*.parquet"))[:2]
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert {fault.name for fault in check_table(local.location, deep=True).faults} == {first.name, second.name}
    with pytest.raises(TableDamagedError):
        READS["search"](local.location)
    first.write_bytes(one)
    second.write_bytes(other)
    data = bytearray(one)
    place = data.rindex(b"parquet-cpp")  # in the footer: nothing else that is read changes
    data[place] ^= 1
    first.write_bytes(data)
    assert check_table(local.location).faults == ()
    assert [fault.what for fault in check_table(local.location, deep=True).faults] == [
        "its bytes are not those that were written (checksum)"
    ]


def forget_checksums(table: MadeTable) -> None:
    """Make the log as earlier code wrote it: no checksums, no seal."""
    for path in Path(table.uri, "_delta_log").glob("*.json"):
        lines = []
        for line in path.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                action["add"]["stats"] = json.dumps({"numRecords": json.loads(action["add"]["stats"])["numRecords"]})
            if "embedder" in action.get("commitInfo", {}):
                action["commitInfo"]["embedder"] = {
                    name: value for name, value in action["commitInfo"]["embedder"].items() if name not in ("checksum", "holds")
                }
            lines.append(json.dumps(action))
        path.write_text("\n".join(lines) + "\n")


def test_a_table_of_an_earlier_embedder_is_read_and_counted_as_such(local: MadeTable) -> None:
    forget_checksums(local)
    checked = check_table(local.location, deep=True)
    assert (checked.faults, checked.without_checksum) == ((), checked.parts)
    assert f"{checked.parts} parts without a checksum" in checked.text()
    local.follow(EDITED)
    assert check_table(local.location).without_checksum == checked.parts - 2, "the task of two parts that changed"


def test_a_text_that_does_not_have_its_content_hash_is_found_without_checksums(local: MadeTable) -> None:
    forget_checksums(local)
    broken = next(path for path in Path(local.uri).glob("*.parquet") if "large-2" in pq.read_table(path)["shard"].to_pylist())
    rows = pq.read_table(broken)
    texts = pa.array([text.replace("six", "sit") for text in rows["text"].to_pylist()])
    footer = json.loads(rows.schema.metadata[FOOTER_KEY])
    changed = rows.replace_schema_metadata(None).set_column(rows.schema.names.index("text"), "text", texts)
    broken.write_bytes(encode_parquet(changed, footer))
    assert list(check_rows(local.names(), SPEC, local.location, ())) == [(broken.name, "1 texts that do not have their content hash")]


def edit_log(table: MadeTable, change: Callable[[str], str], version: int = 0) -> None:
    path = Path(table.uri, "_delta_log", f"{version:020d}.json")
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


def edit_spec(table: MadeTable, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the spec in the newest commit of a log without a seal."""
    forget_checksums(table)

    def edit(text: str) -> str:
        lines = [json.loads(line) for line in text.splitlines()]
        for line in lines:
            if "embedder" in line.get("commitInfo", {}):
                change(line["commitInfo"]["embedder"]["spec"])
        return "\n".join(map(json.dumps, lines)) + "\n"

    edit_log(table, edit)


def test_a_record_is_believed_whatever_numbers_it_holds(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    figures = draw.uniform(-1, 1, 2000) * 10.0 ** draw.integers(-20, 20, 2000)
    ranges = draw.normal(size=500).astype(np.float32)
    table = MadeTable(str(tmp_path / "table"))
    table.follow({"a": []}, record={"figures": figures.tolist(), "ranges": {"low": ranges.tolist()}, "share": float("nan"), "large": 1e300})
    state = require_table(table.location)
    np.testing.assert_allclose(state.info["figures"], figures, rtol=1e-14)
    np.testing.assert_array_equal(np.array(state.info["ranges"]["low"], np.float32), ranges)
    assert state.info["share"] is None


SPECS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another depth": (lambda spec: spec.update(depth=3), "the spec in its log gives space .* and the vectors are of space"),
    "unknown field": (lambda spec: spec.update(later=1), r"cannot be read \(later: Extra inputs.*upgrade embedder"),
    "missing field": (lambda spec: spec.pop("dim"), r"cannot be read \(dim: Field required"),
    "wrong type": (lambda spec: spec.update(dim="six"), r"cannot be read \(dim: Input should be a valid integer"),
    "newer recipe": (lambda spec: spec.update(recipe_version=99), "recipe version 99, and this embedder knows 1; upgrade embedder"),
}


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("read", [read_table, open_table, read_version, read_record])
def test_a_spec_that_was_edited_or_is_of_a_newer_embedder_is_refused(
    local: MadeTable, case: str, read: Callable[[Location], object]
) -> None:
    edit_spec(local, SPECS[case][0])
    with pytest.raises(TableDamagedError, match=SPECS[case][1]):
        read(local.location)


EDITS: dict[str, tuple[Callable[[str], str], str]] = {
    "query prompt": (
        lambda text: text.replace('"query_prompt":""', '"query_prompt":"x"', 1),
        "run record in its log was edited or is damaged",
    ),
    "bucket bits": (lambda text: text.replace('"bucket_bits":1', '"bucket_bits":2', 1), "run record in its log was edited or is damaged"),
    "rows": (lambda text: re.sub(r'numRecords\\": (\d)', r'numRecords\\": 1\1', text, count=1), "other parts than its run record"),
    "column": (lambda text: text.replace('\\"topic\\"', '\\"tapic\\"', 1), "its columns are not those of its run record"),
    "outside": (lambda text: re.sub(r'"path":"', '"path":"../', text, count=1), r"holds '\.\./.*which embedder did not write"),
    "cut": (lambda text: text[: len(text) // 2], r"0{20}\.json"),
    "empty": (lambda text: "", r"0{20}\.json.*empty|log files|no table there|damaged"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_log_that_was_edited_or_cut_is_refused_in_one_line(local: MadeTable, case: str) -> None:
    edit_log(local, EDITS[case][0])
    for read in (read_table, open_table, read_version):
        with pytest.raises(StorageError, match=EDITS[case][1]) as found:
            read(local.location)
        assert "\n" not in str(found.value)


def delete_a_part(table: MadeTable) -> None:
    DeltaTable(table.uri).delete("doc_id = 'd4'")


def append_rows(table: MadeTable) -> None:
    """Append a file with the name of one of ours, as a copy of a task would have."""
    name = str(table.names()[0]).replace("-0000", "-1000", 1)
    Path(table.uri, name).write_bytes(largest_part(table).read_bytes())
    add = AddAction(name, 10, {}, 0, True, json.dumps({"numRecords": 1}))
    delta = DeltaTable(table.uri)
    delta.create_write_transaction([add], "append", delta.schema())


def remove_task(table: MadeTable) -> None:
    """Remove all parts of a task, as a DELETE of a whole shard does."""
    DeltaTable(table.uri).delete("shard = 'large-2'")


FOREIGN: dict[str, Callable[[MadeTable], None]] = {
    "delete": delete_a_part,
    "delete of a shard": remove_task,
    "update": lambda table: DeltaTable(table.uri).update(updates={"topic": "'z'"}, predicate="doc_id = 'a'") and None,
    "optimize": lambda table: DeltaTable(table.uri).optimize.compact() and None,
    "append": append_rows,
}


@pytest.mark.parametrize("case", FOREIGN)
def test_rows_that_another_tool_changed_are_refused_until_they_are_repaired(local: MadeTable, case: str) -> None:
    before = local.rows()
    FOREIGN[case](local)
    for read in (read_table, open_table, read_version):
        with pytest.raises(TableDamagedError, match="another tool changed the table"):
            read(local.location)
    assert maintain([local.uri, "--check"]) == 1
    maintain([local.uri, "--check", "--deep", "--repair"])
    local.follow(CORPUS)
    assert local.rows() == before
    assert maintain([local.uri, "--check", "--deep"]) == 0


def test_a_delta_feature_that_hides_rows_is_refused(local: MadeTable) -> None:
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    path = Path(local.uri, "_delta_log", f"{1:020d}.json")
    path.write_text(json.dumps({"commitInfo": {"operation": "SET TBLPROPERTIES"}}) + "\n" + json.dumps({"protocol": protocol}) + "\n")
    for read in (read_table, open_table, read_version):
        with pytest.raises(TableDamagedError, match="needs the Delta feature deletionVectors, which embedder does not read"):
            read(local.location)


def checkpointed(table: MadeTable) -> Path:
    table.follow(EDITED)
    write_checkpoint(table.location)
    table.follow(CORPUS)
    return Path(table.uri, "_delta_log")


LOG_DAMAGES: dict[str, Callable[[Path], object]] = {
    "checkpoint cut": lambda log: next(log.glob("*.parquet")).write_bytes(next(log.glob("*.parquet")).read_bytes()[:-30]),
    "checkpoint gone": lambda log: next(log.glob("*.parquet")).unlink(),
    "hint": lambda log: (log / "_last_checkpoint").write_text('{"version":7,"size":3}'),
}


@pytest.mark.parametrize("case", LOG_DAMAGES)
def test_a_checkpoint_whose_commits_are_there_is_mended(local: MadeTable, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows, log = local.rows(), checkpointed(local)
    LOG_DAMAGES[case](log)
    with pytest.raises(TableDamagedError, match=r"the log is damaged: _delta_log/.*run jobs\.maintain with --check --repair"):
        read_table(local.location)
    assert maintain([local.uri, "--check", "--repair"]) == 0
    assert "damaged files of the log removed" in capsys.readouterr().out
    assert local.rows() == rows


def test_a_commit_that_nothing_replaces_is_named_and_every_command_ends_with_its_line(local: MadeTable) -> None:
    log = checkpointed(local)
    newest = max(log.glob("*.json"))
    newest.write_text(newest.read_text()[:-200])
    commands: list[Callable[[], object]] = [
        lambda: maintain([local.uri, "--check", "--repair"]),
        lambda: vacuum_table(local.location, 1000),
        lambda: compact_table(local.location, 10),
        lambda: read_history(local.location, 5),
        lambda: history([local.uri]),
        lambda: write_checkpoint(local.location),
        lambda: read_changes(local.location, 0, None),
    ]
    for command in commands:
        with pytest.raises(TableDamagedError, match=rf"{newest.name} .*restore the log from a backup"):
            command()


def test_an_old_commit_behind_a_checkpoint_is_mended(local: MadeTable) -> None:
    log = checkpointed(local)
    (log / f"{0:020d}.json").write_text("{")
    assert maintain([local.uri, "--check"]) == 1
    assert maintain([local.uri, "--check", "--repair"]) == 0
    with pytest.raises(VersionGoneError):
        read_changes(local.location, 0, None)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_quarantine_whose_log_is_damaged_is_made_anew(local: MadeTable, damage: str) -> None:
    rejects = local.quarantine()
    newest = max(Path(local.uri, "_quarantine/_delta_log").glob("*.json"))
    newest.unlink() if damage == "gone" else newest.write_text(newest.read_text()[:-50])
    assert [fault.name for fault in check_table(local.location).faults if "_delta_log" in fault.name or damage == "gone"]
    maintain([local.uri, "--check", "--repair"])
    assert maintain([local.uri, "--check", "--deep"]) == 0
    assert local.quarantine() == rejects


def test_a_changed_quarantine_file_is_found_and_made_again(local: MadeTable) -> None:
    rejects = local.quarantine()
    broken = next(path for path in Path(local.uri, "_quarantine").glob("*.parquet"))
    data = bytearray(broken.read_bytes())
    data[8] ^= 1
    broken.write_bytes(data)
    assert [(fault.name, "quarantine file" in fault.what) for fault in check_table(local.location, deep=True).faults] == [
        (broken.name, True)
    ]
    maintain([local.uri, "--check", "--deep", "--repair"])
    local.follow(CORPUS)
    assert local.quarantine() == rejects


def test_files_that_are_not_embedders_are_reported(local: MadeTable, capsys: pytest.CaptureFixture[str]) -> None:
    Path(local.uri, ".hidden").touch()
    Path(local.uri, "part-0.parquet").touch()
    assert maintain([local.uri, "--check"]) == 0
    assert "files that embedder did not write: .hidden, part-0.parquet" in capsys.readouterr().out


def test_int8_vectors_are_searched_with_nothing_but_a_checkpoint(tmp_path: Path) -> None:
    table = TypedTable(str(tmp_path / "table")).of_space(quantization="int8", calibration="c")
    table.follow(corpus_of(1))
    DeltaTable(table.uri).create_checkpoint()
    query_D = np.ones(len(RANGES.low_D), np.float32)
    hits = open_table(Location(table.uri)).find(query_D, 3, None)
    Path(table.uri, "_delta_log", f"{0:020d}.json").unlink()
    found = read_record(Location(table.uri)).ranges
    assert isinstance(found, Ranges)
    np.testing.assert_array_equal(found.low_D, RANGES.low_D)
    assert [hit.score for hit in open_table(Location(table.uri)).find(query_D, 3, None)] == [hit.score for hit in hits]


@pytest.mark.s3
def test_an_outage_is_an_error_of_the_storage(bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedder.core.retry.PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("embedder.core.delta_options._DELTA_RETRIES", {"max_retries": "1", "retry_timeout": "1s"})
    table = MadeTable(bucket)
    table.follow(CORPUS)
    proxy.inject(break_first(10**9, "slow_down"))
    for read in (read_table, require_table, open_table, read_version, check_table):
        with pytest.raises(StorageError, match="cannot") as found:
            read(table.location)
        assert not isinstance(found.value, TableDamagedError | CommitError)
