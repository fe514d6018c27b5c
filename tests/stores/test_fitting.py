"""Values at the limits of every store: kept, counted as altered, or left out by name; and never a load that cannot end."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedder.core.errors import ConfigError
from embedder.core.schema import QUARANTINE, table_schema
from embedder.core.storage import Location
from embedder.core.units import Stats
from embedder.stores import fitting, load
from embedder.stores.fitting import Fitting, find_long, find_not_finite, find_nul, find_null_items
from embedder.stores.rows import ROW_ID, to_payloads
from embedder.table.delta import Change, commit_table, read_table
from embedder.table.parts import footer_of, write_part
from embedder.table.vectors import vector_column
from jobs import load as job
from tests.stores.conftest import STORES, TABLE_SPEC, Loader, TypedTable, name_of, vector_of

METADATA = pa.schema(
    [
        ("name", pa.string()),
        ("number", pa.float64()),
        ("count", pa.int64()),
        ("seen", pa.timestamp("us", "UTC")),
        ("exact", pa.decimal128(38, 10)),
        ("data", pa.binary()),
        ("tags", pa.list_(pa.string())),
        ("pairs", pa.map_(pa.string(), pa.int64())),
        ("origin", pa.struct([("place", pa.string())])),
    ]
)
SCHEMA = table_schema(METADATA, store_text=True)
LONG = "x" * 70_000
EXACT = Decimal("1234567890123456789012345678.0123456789")
EDGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "extremes": {
        "count": -(2**63), "number": 5e-324, "seen": datetime(1, 1, 1, tzinfo=UTC), "exact": EXACT
    },
    "last": {"count": 2**63 - 1, "number": 1.7976931348623157e308, "seen": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)},
    "bytes": {"data": b"\xff\x00", "pairs": [("a", 1), ("b", None)]},
    "nan": {"number": float("nan")},
    "nul": {"name": "a\0b", "tags": ["\0"], "origin": {"place": "\0"}},
    "null in a list": {"tags": ["a", None]},
    LONG: {},
    "long name": {"name": LONG},
    "long tags": {"tags": ["t"] * 5_000},
    "long place": {"origin": {"place": LONG}},
}  # fmt: skip
LEFT_OUT = {"milvus": {LONG, "long name", "long tags", "long place"}}
ALTERED = {
    "milvus": ("1 rows: NaN or infinity became null in number", "1 rows: nulls left out of tags"),
    "qdrant": ("1 rows: NaN or infinity became null in number",),
    "pgvector": ("1 rows: NUL became U+FFFD in name", "1 rows: NUL became U+FFFD in origin", "1 rows: NUL became U+FFFD in tags"),
}


def follow(table: TypedTable, edges: dict[str, dict[str, Any]]) -> None:
    """Make the table hold one document for each edge, in one part."""
    base = {"chunk": 0, "num_chunks": 1, "start_char": 0, "end_char": 1, "num_tokens": 3, "text": "x", "content_hash": "h", "shard": "s"}
    rows = [base | {"doc_id": doc_id, "row": row} | values for row, (doc_id, values) in enumerate(edges.items())]
    plain = pa.Table.from_pylist(rows, pa.schema([field for field in SCHEMA if field.name != "embedding"]))
    vectors_ND = np.array([vector_of(doc_id) for doc_id in edges], np.float32)
    whole = plain.append_column(SCHEMA.field("embedding"), vector_column(vectors_ND))
    folder, state = Location(table.uri), read_table(Location(table.uri))
    name = name_of("s", [f"{doc_id} {values}" for doc_id, values in edges.items()], TABLE_SPEC)
    part = write_part(whole, QUARANTINE.empty_table(), name, footer_of(TABLE_SPEC, Stats(documents=len(rows), chunks=len(rows))), folder)
    info = {"spec": TABLE_SPEC.model_dump(), "space_id": TABLE_SPEC.space_id, "bucket_bits": 0, "ranges": None}
    commit_table(folder, Change((part,), tuple(state.rows) if state else (), SCHEMA, info, False), state)


@pytest.mark.real
@pytest.mark.parametrize("loader", STORES, indirect=True)
def test_no_value_blocks_a_load_and_none_is_lost_or_altered_without_a_line(loader: Loader, caplog: pytest.LogCaptureFixture) -> None:
    kind = next(iter(loader.section))
    follow(loader.table, EDGES)
    left_out = LEFT_OUT.get(kind, set())
    report = loader.load()
    assert (report.left_out, report.altered, report.upserted) == (len(left_out), ALTERED.get(kind, ()), len(EDGES) - len(left_out))
    assert [f"left out document {doc_id[:80]!r}" in caplog.text for doc_id in left_out] == [True] * len(left_out)
    rows = {doc_id: row for (_, doc_id, _), row in loader.rows().items()}
    assert {doc_id.replace("\0", "\ufffd") for doc_id in EDGES} - left_out == set(rows)
    assert str(rows["extremes"]["exact"]) == str(EXACT)
    assert rows["extremes"]["count"] == -(2**63)
    assert rows["extremes"]["number"] == 5e-324
    assert rows["bytes"]["data"] in (b"\xff\x00", "/wA=")
    assert dict(rows["bytes"]["pairs"]) == {"a": 1, "b": None}
    again = loader.load()
    assert (again.outcome, again.left_out) == ("nothing to do", len(left_out))
    assert ("left out" in again.text()) == bool(left_out)

    # a row that fits now comes in, one that no longer fits goes, and one that is gone is not counted
    edited = {doc_id: values for doc_id, values in EDGES.items() if doc_id != LONG} | {
        "long name": {"name": "short"},
        "plain": {"name": LONG},
    }
    follow(loader.table, edited)
    report = loader.load()
    assert report.left_out == (3 if left_out else 0)
    assert {doc_id for _, doc_id, _ in loader.rows()} == set(edited) - ({"plain", "long tags", "long place"} if left_out else set())


def rows_of(**columns: Any) -> pa.Table:
    """Return rows with keys."""
    (count,) = {len(column) for column in columns.values()}
    keys = {ROW_ID: [f"r{row}" for row in range(count)], "shard": ["s"] * count, "doc_id": [f"d{row}" for row in range(count)]}
    return pa.table(keys | {"chunk": [0] * count} | columns)


def test_rows_that_do_not_fit_are_remembered_until_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = Fitting(
        "store", lambda rows: {"x is long": find_long(rows["x"], 3, 9)}, lambda rows: {"x": find_nul(rows["x"])}, ["r0", "gone"]
    )
    kept = list(keeping.keep(iter([rows_of(x=["a", "long", "\0"]), rows_of(x=["long"])])))
    assert [each["x"].to_pylist() for each in kept] == [["a", "\0"]]
    assert keeping.left_out == {"r0", "r1", "gone"}
    assert keeping.changes() == ("1 rows: x",)
    monkeypatch.setattr(fitting, "MOST_LEFT_OUT", 3)
    with pytest.raises(
        ConfigError, match="store: cannot hold more than 3 rows, the last document 'd2' of s, chunk 0: x is long; leave that"
    ):
        list(keeping.keep(iter([rows_of(x=["a", "b", "c", "long"]), rows_of(x=["long", "long", "long", "long"])])))


@pytest.mark.parametrize(
    ("find", "type_", "values"),
    [
        (lambda column: find_long(column, 3, 2), pa.string(), ["äb", None, "ääx"]),
        (lambda column: find_long(column, 3, 2), pa.list_(pa.string()), [["abc", None], None, ["a", "long"]]),
        (lambda column: find_long(column, 3, 2), pa.list_(pa.int8()), [[1, 2], [], [1, 2, 3]]),
        (lambda column: find_long(column, 4, 2), pa.binary(), [b"abc", None, b"abcd"]),
        (find_null_items, pa.list_(pa.int8()), [[1], None, [1, None]]),
        (find_not_finite, pa.float64(), [1.0, None, float("inf")]),
        (find_not_finite, pa.struct([("a", pa.list_(pa.float64()))]), [{"a": [1.0]}, None, {"a": [float("nan")]}]),
        (find_nul, pa.string(), ["", None, "a\0"]),
        (find_nul, pa.map_(pa.string(), pa.int8()), [[("a", 1)], None, [("\0", 1)]]),
    ],
)
def test_values_beyond_a_limit_are_found(find: Callable[[pa.ChunkedArray], Any], type_: pa.DataType, values: list[Any]) -> None:
    column = pa.chunked_array([pa.array([*values[2:], *values], type_).slice(1)])
    assert find(column).tolist() == [False, False, True]
    assert find(column.slice(0, 0)).tolist() == []


def test_a_map_is_an_object_unless_a_key_is_not_text_or_repeated() -> None:
    maps = pa.array([[("a", 1)], [("a", 1), ("a", 2)], [], None], pa.map_(pa.string(), pa.int8()))
    numbered = pa.array([[(1, "x")], None, None, None], pa.map_(pa.int8(), pa.string()))
    rows = to_payloads(pa.table({"m": maps, "n": numbered, "b": [b"\xff", None, None, None]}))
    assert [row["m"] for row in rows] == [{"a": 1}, [["a", 1], ["a", 2]], [], None]
    assert (rows[0]["n"], rows[0]["b"]) == ([[1, "x"]], "/w==")


@pytest.mark.parametrize("left_out", [0, 1])
def test_a_load_that_leaves_rows_out_says_so_and_exits_1(
    left_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("1 rows: text cut",)
    report = load.Report("loaded", "store", "table", 1, None, 10, 10 - left_out, 0, 1.0, "index", left_out, changes)
    for name, value in {"read_version": None, "sync": report, "open_store": nullcontext(), "start_logging": None}.items():
        monkeypatch.setattr(job, name, lambda *_, value=value: value)
    config = tmp_path / "load.yaml"
    config.write_text(f"table: {{uri: {tmp_path}}}\nduckdb: {{path: {tmp_path / 'x'}}}\n")
    assert job.main([str(config)]) == left_out
    printed = capsys.readouterr().out
    assert ("left out" in printed) == bool(left_out)
    assert "text cut" in printed
