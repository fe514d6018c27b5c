"""Every type of a parquet file at its extremes, from shard to written part, compared with DuckDB's reading of both."""

import struct
from decimal import Decimal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.core.errors import ConfigError, SourceError
from embedder.core.schema import LEADING
from embedder.table.parts import assemble_rows, encode_parquet

LEAST, MOST = -(2**63), 2**63 - 1
YEAR_1, YEAR_10000 = -62_135_596_800, 253_402_300_800
HALVES = np.array([0.1, 65504, -0.0, np.nan, np.inf, -np.inf, 6e-8], np.float16)
IDS = ["1b4e28ba-2fa1-11d2-883f-0016d3cca427", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", None]


def uuids():
    """Return the ids as an Arrow array."""
    data = [each and bytes.fromhex(each.replace("-", "")) for each in IDS]
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array(data, pa.binary(16)))


def extended(type_, values):
    """Return an array of an extension type."""
    return pa.ExtensionArray.from_storage(type_, pa.array(values, type_.storage_type))


def seconds(unit, *, per_second, zone=None):
    """Return times at the edges of the years 1 to 9999, in and out, with the extremes of what DuckDB reads."""
    least, most = LEAST // (10**6 // per_second) + 1, MOST // (10**6 // per_second)
    values = [0, YEAR_1 * per_second, YEAR_10000 * per_second - 1, None, YEAR_1 * per_second - 1, YEAR_10000 * per_second, least, most]
    return pa.array(values, pa.timestamp(unit, zone))


OUTSIDE = {4, 5, 6, 7}
KEPT = {
    "bool": (pa.array([True, False, None]), set()),
    "int8": (pa.array([-128, 127, None], pa.int8()), set()),
    "int32": (pa.array([-(2**31), 2**31 - 1, None], pa.int32()), set()),
    "int64": (pa.array([LEAST, MOST, None]), set()),
    "uint8": (pa.array([0, 255, None], pa.uint8()), set()),
    "uint16": (pa.array([0, 2**16 - 1, None], pa.uint16()), set()),
    "uint32": (pa.array([0, 2**32 - 1, None], pa.uint32()), set()),
    "uint64": (pa.array([0, 2**63, 2**64 - 1, None], pa.uint64()), set()),
    "float16": (pa.array(HALVES), set()),
    "float32": (pa.array([0.1, -0.0, 1e-45, 3.4028234663852886e38, float("nan"), float("-inf"), None], pa.float32()), set()),
    "double": (pa.array([0.1, -0.0, 5e-324, 1.7976931348623157e308, float("nan"), float("inf"), None]), set()),
    "decimal32": (pa.array([Decimal("-9.99"), None], pa.decimal32(3, 2)), set()),
    "decimal64": (pa.array([Decimal("9" * 18), None], pa.decimal64(18, 0)), set()),
    "decimal of 38 digits": (pa.array([Decimal(10**38 - 1), Decimal(1 - 10**38), None], pa.decimal128(38, 0)), set()),
    "decimal of scale 38": (pa.array([Decimal("0." + "9" * 38), Decimal("-1E-38"), None], pa.decimal128(38, 38)), set()),
    "string": (pa.array(["", "a\0b", " a ", "é", "e\u0301", "\U0010ffff", None]), set()),
    "large string": (pa.array(["ä", None], pa.large_string()), set()),
    "dictionary": (pa.array(["ä", None, "ä"]).dictionary_encode(), set()),
    "binary": (pa.array([b"", b"\xff\x00", None]), set()),
    "fixed binary": (pa.array([b"\xff\x00", None], pa.binary(2)), set()),
    "date32": (pa.array([0, -719_162, 2_932_896, None, -719_163, 2_932_897, -(2**31), 2**31 - 1], pa.date32()), OUTSIDE),
    "date64": (pa.array([0, YEAR_1 * 1000, None], pa.date64()), set()),
    "milliseconds": (seconds("ms", per_second=1000), OUTSIDE),
    "microseconds": (seconds("us", per_second=10**6), OUTSIDE),
    "with a zone": (seconds("us", per_second=10**6, zone="America/New_York"), OUTSIDE),
    "nanoseconds": (pa.array([0, 1000, -1000, MOST // 1000 * 1000, None, 1, -1, MOST, LEAST], pa.timestamp("ns")), {5, 6, 7, 8}),
    "nanoseconds with a zone": (pa.array([0, 1000, 1001], pa.timestamp("ns", "UTC")), {2}),
    "list": (pa.array([[1, None], [], None], pa.list_(pa.uint8())), set()),
    "list of times": (pa.array([[0, None], [0, MOST], None], pa.list_(pa.timestamp("us"))), {1}),
    "struct": (pa.array([{"a": 1, "b": None}, {"a": None, "b": "x"}, None]), set()),
    "map": (pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int16())), set()),
    "uuid": (uuids(), set()),
    "list of uuids": (pa.ListArray.from_arrays([0, 2, 2, 4], uuids()), set()),
    "struct of uuids": (pa.StructArray.from_arrays([uuids()], ["u"]), set()),
    "json": (extended(pa.json_(), ['{"a": [1.10]}', "null", None]), set()),
    "bool8": (extended(pa.bool8(), [1, 0, None]), set()),
    "tensor": (extended(pa.fixed_shape_tensor(pa.int8(), [2]), [[1, 2], [3, 4]]), set()),
}


def write_part(documents, path):
    """Write documents as rows of a part, one chunk each."""
    count = documents.num_rows
    chunks = {name: pa.array([0] * count, pa.int32()) for name in LEADING.names[1:]}
    chunks |= {"document": pa.array(range(count), pa.int32()), "truncated": pa.array([False] * count)}
    rows = assemble_rows(documents, pa.table(chunks), np.zeros((count, 2), np.float32), False)
    path.write_bytes(encode_parquet(rows, {}))
    return path


def compare(read, path, tmp_path, refused, **settings):
    """Read a shard, write a part, and compare the column `c` of both as DuckDB reads them, in the type of the part."""
    got = read(path, metadata_columns=["c"], **settings)
    assert {row for row, _ in got.reasons} == refused
    assert {reason for _, reason in got.reasons} <= {"metadata_type"}
    part = write_part(got.documents, tmp_path / "part")
    with duckdb.connect() as db:
        written = db.sql(f"SELECT row, c::VARCHAR, typeof(c) FROM read_parquet('{part}') ORDER BY row").fetchall()
        (type_,) = {type_ for *_, type_ in written}
        wanted = db.sql(
            f"SELECT file_row_number, c::{type_}::VARCHAR, '{type_}' FROM read_parquet('{path}', file_row_number = true)"
            f" WHERE file_row_number IN ({', '.join(str(row) for row, *_ in written)}) ORDER BY 1"
        ).fetchall()
    assert written == wanted
    assert len(written) + len(refused) == got.num_records
    return got


@pytest.mark.parametrize(("values", "refused"), KEPT.values(), ids=KEPT)
def test_a_type_is_kept_exactly_or_quarantined(read, tmp_path, values, refused):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * len(values), "c": values}), path)
    compare(read, path, tmp_path, refused)


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_times_out_of_range_of_a_microsecond_are_quarantined(write_file, read, unit):
    values = pa.array([0, LEAST, MOST, MOST // 1000, MOST // 1000 + 1], pa.timestamp(unit))
    path = write_file("a.parquet", pa.table({"text": ["x"] * 5, "c": values, "nested": pa.StructArray.from_arrays([values], ["a"])}))
    refused = {"ms": [1, 2, 3, 4], "us": [1, 2]}[unit]
    for column in ("c", "nested", "nested.a"):
        for types in ({}, {column.replace(".", "_"): "string"} if column != "nested" else {}):
            got = read(path, metadata_columns=[column], metadata_types=types)
            assert got.reasons == [(row, "metadata_type") for row in refused]


DUCKDB = {
    "uuid": ("uuid()", "UUID"),
    "list of uuids": ("[uuid(), NULL]", "UUID"),
    "map of uuids": ("map([uuid()], [uuid()])", "UUID"),
    "json": ("""'{"a": 1}'::JSON""", "JSON"),
    "enum": ("'x'::ENUM('x', 'y')", "x"),
    "last second": ("TIMESTAMP_S '9999-12-31 23:59:59'", "9999"),
    "unsigned": ("18446744073709551615::UBIGINT", "18446744073709551615"),
    "decimal": ("'-0.5'::DECIMAL(38, 37)", "-0.5"),
    "nan": ("'nan'::FLOAT", "nan"),
    "bits": ("'101'::BIT", "101"),
}


@pytest.mark.parametrize("expression", [expression for expression, _ in DUCKDB.values()], ids=DUCKDB)
def test_types_of_duckdb_are_kept_exactly(read, tmp_path, expression):
    path = tmp_path / "a.parquet"
    duckdb.execute(f"COPY (SELECT 'x' AS text, {expression} AS c FROM range(3)) TO '{path}' (FORMAT parquet)")
    compare(read, path, tmp_path, set())


@pytest.mark.parametrize("expression", ["DATE 'infinity'", "TIMESTAMP 'infinity'", "TIMESTAMPTZ '-infinity'", "DATE '0001-01-01 (BC)'"])
def test_infinite_dates_and_years_before_1_are_quarantined(read, tmp_path, expression):
    path = tmp_path / "a.parquet"
    duckdb.execute(f"COPY (SELECT 'x' AS text, {expression} AS c) TO '{path}' (FORMAT parquet)")
    assert read(path, metadata_columns=["c"]).reasons == [(0, "metadata_type")]


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("INTERVAL 3 days", "parquet's INTERVAL"),
        ("[INTERVAL 3 days]", "parquet's INTERVAL"),
        ("1::VARIANT", "parquet's VARIANT"),
        ("TIME '10:00'", "time64"),
    ],
)
def test_types_without_a_counterpart_are_refused_by_name_before_the_first_read(read, tmp_path, expression, named):
    path = tmp_path / "a.parquet"
    duckdb.execute(f"COPY (SELECT 'x' AS text, {expression} AS c) TO '{path}' (FORMAT parquet)")
    for settings in ({"metadata_columns": ["c"]}, {"id_column": "c"}, {"text_columns": "c"}):
        with pytest.raises(ConfigError, match=named):
            read(path, **settings)
    if named != "time64":
        with pytest.raises(ConfigError, match=r"INTERVAL|VARIANT"):
            read(path, metadata_columns=["c"], metadata_types={"c": "string"})
        with pytest.raises(SourceError, match=f"a.parquet: column 'c' .*{named}"):
            read(path, pa.schema([("c", pa.string())]), metadata_columns=["c"])


INT96 = [0, 1000, -1000, (YEAR_10000 - 1) * 10**6, YEAR_1 * 10**6, None]


@pytest.mark.parametrize("nested", [False, True])
def test_int96_keeps_all_years_and_microseconds(read, tmp_path, nested):
    path = tmp_path / "a.parquet"
    times = pa.array(INT96, pa.timestamp("us"))
    values = pa.ListArray.from_arrays(list(range(len(INT96) + 1)), times) if nested else times
    pq.write_table(pa.table({"text": ["x"] * len(INT96), "c": values}), path, use_deprecated_int96_timestamps=True)
    got = compare(read, path, tmp_path, set())
    kept = got.documents["c"].combine_chunks()
    assert (kept.flatten() if nested else kept).cast(pa.int64()).to_pylist() == INT96


@pytest.mark.parametrize("nested", [False, True])
def test_int96_that_a_table_cannot_hold_is_quarantined(read, tmp_path, nested):
    path = tmp_path / "a.parquet"
    times = pa.array([0, 1, -1, 86_400 * 10**9, 2 * 86_400 * 10**9, 1000], pa.timestamp("ns"))
    values = pa.StructArray.from_arrays([times, times], ["other", "c"]) if nested else times
    table = pa.table({"text": ["x"] * len(times), "c": values})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, use_dictionary=False, compression="none", write_statistics=False)
    # days that overflow 64 bits of microseconds: one wraps around to a plausible time
    data, days = path.read_bytes(), (2_440_588 + 1, 2_440_588 + 2)
    for day, written in zip(days, (2**32 - 1, 2_440_588 + 213_503_982), strict=True):
        data = data.replace(struct.pack("<QI", 0, day), struct.pack("<QI", 0, written))
    path.write_bytes(data)
    compare(read, path, tmp_path, {1, 2, 3, 4})


ANNOTATION = bytes.fromhex("25264ccc0000")
"""JSON as a converted and a logical type in a footer."""


def annotate(path, annotation):
    """Write a column of bytes with another logical type than pyarrow can write."""
    values = extended(pa.json_(), ["x", "ä", None])
    pq.write_table(pa.table({"text": ["x"] * 3, "c": values}), path, store_schema=False)
    data = path.read_bytes()
    start = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    footer = data[start:-8].replace(ANNOTATION, bytes.fromhex(annotation))
    path.write_bytes(data[:start] + footer + struct.pack("<I", len(footer)) + b"PAR1")


@pytest.mark.parametrize(
    ("annotation", "type_"),
    [("25084c4c0000", pa.string()), ("25284cdc0000", pa.binary()), ("6c0c220000", pa.binary()), ("6c0c240000", pa.binary())],
    ids=["enum", "bson", "geometry", "geography"],
)
def test_annotated_bytes_are_text_for_enum_and_bytes_for_others(read, tmp_path, annotation, type_):
    path = tmp_path / "a.parquet"
    annotate(path, annotation)
    kept = read(path, metadata_columns=["c"]).documents["c"]
    assert kept.type == type_
    assert kept.cast(pa.string()).to_pylist() == ["x", "ä", None]
    if type_ == pa.string():
        assert read(path, text_columns="c", id_column="c").documents.select(["doc_id", "text"]).to_pylist() == [
            {"doc_id": each, "text": each} for each in ("x", "ä")
        ]
    else:
        with pytest.raises(ConfigError, match="'c' is binary, not text"):
            read(path, id_column="c")


def test_an_extension_type_that_this_process_lacks_is_its_storage(read, tmp_path):
    field = pa.field("c", pa.int64(), metadata={"ARROW:extension:name": "acme.cents", "ARROW:extension:metadata": ""})
    pq.write_table(pa.table([["x"], [MOST]], pa.schema([("text", pa.string()), field])), tmp_path / "a.parquet")
    compare(read, tmp_path / "a.parquet", tmp_path, set())


def test_a_table_that_holds_the_bytes_of_uuids_keeps_them(write_file, read):
    path = write_file("a.parquet", pa.table({"text": ["x"] * 4, "c": uuids()}))
    got = read(path, pa.schema([("c", pa.binary())]), metadata_columns=["c"])
    assert [each and each.hex() for each in got.documents["c"].to_pylist()] == [each and each.replace("-", "") for each in IDS]


IDS_BY_TYPE = {
    "uuid": (uuids(), IDS[:3], {3}),
    "float": (pa.array([7.0, 0.5, 2.0**60, -0.0, float("nan"), float("inf")]), ["7", "0.5", str(2**60), "0"], {4, 5}),
    "float32": (pa.array([0.5, 0.1], pa.float32()), ["0.5", "0.10000000149011612"], set()),
    "unsigned": (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)], set()),
    "decimal256": (pa.array([Decimal(10**60)], pa.decimal256(76, 0)), [str(10**60)], set()),
    "text": (pa.array(["a", "A", "a ", "a\0", "é", "e\u0301", "x" * 70_000]), None, set()),
}


@pytest.mark.parametrize(("values", "named", "refused"), IDS_BY_TYPE.values(), ids=IDS_BY_TYPE)
def test_different_ids_stay_different(write_file, read, values, named, refused):
    got = read(write_file("a.parquet", pa.table({"text": ["x"] * len(values), "c": values})), id_column="c")
    assert got.documents["doc_id"].to_pylist() == (values.to_pylist() if named is None else named)
    assert set(got.reasons) == {(row, "missing_id") for row in refused}


@pytest.mark.parametrize("type_", [pa.bool_(), pa.binary(), pa.timestamp("us"), pa.date32(), pa.decimal128(5, 2), pa.list_(pa.string())])
def test_other_types_are_not_ids(write_file, read, type_):
    path = write_file("a.parquet", pa.table({"text": ["x"], "c": pa.nulls(1, type_)}))
    with pytest.raises(ConfigError, match=r"source.id_column='c': .* not text or a number"):
        read(path, id_column="c")
