"""A check names every fault and no others; the next run rebuilds what a repair removed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.core.rotation import digest_array, keep_rotation
from embedder.core.units import PartName
from embedder.table.check import check_chains, check_table, repair_table
from embedder.table.check_rows import check_rows, count_misplaced, describe_faults
from embedder.table.parts import FOOTER_KEY, encode_parquet, vector_column
from tests.table.conftest import CORPUS
from tests.tables import DIM, SPEC, MadeTable

Damage = Callable[[Path], None]


@pytest.fixture
def local(tmp_path: Path) -> MadeTable:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    return table


def test_an_intact_table_has_no_fault(table: MadeTable) -> None:
    table.follow(CORPUS)
    table.follow({**CORPUS, "q": [("b", "eight", "x")]})
    checked = check_table(table.location, deep=True)
    assert checked.faults == ()
    assert (checked.parts, checked.rows) == (len(table.names()), len(table.rows()))
    assert "every row read: no fault" in checked.text()


def test_a_missing_or_damaged_rotation_is_a_fault_until_it_is_restored(tmp_path: Path) -> None:
    rotation_WW = np.eye(DIM, dtype=np.float32)
    spec = SPEC.model_copy(update={"rotation": digest_array(rotation_WW)})
    local = MadeTable(str(tmp_path / "rotated"), spec=spec)
    local.follow(CORPUS)
    [fault] = check_table(local.location).faults
    assert fault.name == f"_rotation/{spec.rotation}"
    keep_rotation(rotation_WW, local.location)
    assert check_table(local.location).faults == ()
    Path(local.uri, "_rotation", f"{spec.rotation}.npy").write_bytes(b"PK broken")
    checked = check_table(local.location)
    assert ["damaged" in fault.what for fault in checked.faults] == [True]
    repair_table(local.location, checked)
    keep_rotation(rotation_WW, local.location)
    assert check_table(local.location).faults == ()


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **footer: Any) -> None:
    """Rewrite a part with other rows, which a correct writer never does."""
    rows = pq.read_table(path)
    held = json.loads(rows.schema.metadata[FOOTER_KEY]) | footer
    path.write_bytes(encode_parquet(change(rows.replace_schema_metadata(None)), held))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def miscount(path: Path) -> None:
    stats = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])["stats"]
    rewrite(path, lambda rows: rows, stats={**stats, "quarantined": stats["quarantined"] + 1})


SHALLOW: dict[str, tuple[Damage, str]] = {
    "gone": (Path.unlink, "not on storage"),
    "cut off": (truncate, "bytes on storage"),
    "rows lost": (lambda path: rewrite(path, lambda rows: rows.slice(1)), "rows in the file"),
    "another space": (lambda path: rewrite(path, lambda rows: rows, space_id="other"), "of space other, the table is of"),
    "records lost": (miscount, "are in its quarantine file"),
    "quarantine gone": (lambda path: (path.parent / "_quarantine" / path.name).unlink(), "_quarantine has no file of its name"),
}


@pytest.mark.parametrize("damage", SHALLOW)
def test_a_fault_is_named_and_the_next_run_repairs_it(local: MadeTable, damage: str) -> None:
    rows, rejects = (
        local.rows(),
        local.quarantine(),
    )
    names = [
        path.name for path in Path(local.uri, "_quarantine").glob("*.parquet") if pq.read_metadata(Path(local.uri, path.name)).num_rows
    ]
    broken = Path(local.uri, sorted(names)[0])
    do, what = SHALLOW[damage]
    do(broken)
    checked = check_table(local.location)
    assert any(fault.name == broken.name and what in fault.what for fault in checked.faults)
    assert {fault.name.removeprefix("_quarantine/") for fault in checked.faults} == {broken.name}
    assert broken.name in checked.text()
    assert repair_table(local.location, checked) >= 1
    assert check_table(local.location, deep=True).faults == ()
    local.follow(CORPUS)
    assert check_table(local.location, deep=True).faults == ()
    assert (
        local.rows(),
        local.quarantine(),
    ) == (rows, rejects)


def replace_vector(values: list[float]) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        vectors_ND = np.array(rows["embedding"].to_pylist(), np.float32)
        vectors_ND[0] = values
        return rows.set_column(rows.schema.names.index("embedding"), "embedding", vector_column(vectors_ND))

    return change


def replace_first(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        column = pa.array([value, *rows[name].to_pylist()[1:]], rows.schema.field(name).type)
        return rows.set_column(rows.schema.names.index(name), name, column)

    return change


DEEP: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "norm": (replace_vector([0.6] * DIM), "norm is not 1"),
    "nan": (replace_vector([float("nan"), 0, 0, 1]), "NaN or infinity"),
    "span": (replace_first("start_char", -3), "start before the text"),
    "tokens": (replace_first("num_tokens", 10_000), f"more than {SPEC.max_tokens}"),
    "text": (replace_first("text", "longer than it was"), "not as long as their span"),
    "chunk": (replace_first("chunk", 1), "do not follow the one before"),
    "key twice": (lambda rows: pa.concat_tables([rows.slice(0, 2)] * (rows.num_rows // 2)), "an earlier row of its task has"),
    "null": (replace_first("doc_id", None), "nulls in doc_id"),
}


@pytest.mark.parametrize("damage", DEEP)
def test_a_deep_check_finds_faults_that_footers_do_not_show(local: MadeTable, damage: str) -> None:
    change, what = DEEP[damage]
    broken = max(Path(local.uri).glob("*.parquet"), key=lambda path: pq.read_metadata(path).num_rows)
    rewrite(broken, change)
    shallow = check_table(local.location).faults
    assert [fault.what for fault in shallow if "bytes on storage" not in fault.what] == []
    found = list(check_rows(local.names(), SPEC, local.location, broken=()))
    assert {name for name, _ in found} == {broken.name}
    assert any(what in each for _, each in found)


def test_a_document_is_its_chunks_in_order() -> None:
    def count(*places: tuple[int, int]) -> int:
        return count_misplaced(*np.array(places, np.int32).reshape(-1, 2).T)

    assert count() == 0
    assert count((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)) == 0
    assert count((1, 2)) == 1
    assert count((0, 2)) == 1
    assert count((0, 3), (2, 3)) == 1
    assert count((0, 2), (0, 1)) == 1
    assert count((0, 2), (1, 3)) == 2


def test_vectors_of_another_length_are_found() -> None:
    rows = pa.table({"embedding": [[1.0], [0.0, 1.0]]}, schema=pa.schema([("embedding", pa.list_(pa.float32()))]))
    for name in ("start_char", "end_char", "num_tokens", "row"):
        rows = rows.append_column(name, pa.array([int(name != "start_char")] * 2))
    for name in ("doc_id", "content_hash", "shard"):
        rows = rows.append_column(name, pa.array(["x"] * 2))
    assert list(describe_faults(rows, SPEC.model_copy(update={"dim": 2}))) == ["1 vectors that are not of 2 components"]
    bits = rows.set_column(0, "embedding", pa.array([b"12", b"3"]))
    packed = SPEC.model_copy(update={"dim": 16, "quantization": "binary"})
    assert list(describe_faults(bits, packed)) == ["1 vectors that are not of 16 components"]


def test_chains_that_are_broken_duplicated_or_of_two_versions_are_faults() -> None:
    first, middle, last = (PartName("k", "v", start, start + 10, start == 20) for start in (0, 10, 20))
    assert list(check_chains([first, middle, last])) == []
    assert ["do not reach" in fault.what for fault in check_chains([first, last])] == [True]
    assert ["that others hold too" in fault.what for fault in check_chains([first, middle, last, PartName("k", "v", 0, 20, False)])] == [
        True
    ]
    assert ["parts of 2 versions" in fault.what for fault in check_chains([first, PartName("k", "w", 0, 5, True)])] == [True]
