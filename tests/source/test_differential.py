"""Odd sources against independent readers: each record is a document with exactly its values, or is quarantined and cannot be one.

Python's json and csv, and DuckDB for parquet, say what the records are. DIFFERENTIAL_EXAMPLES sets the number of sources; `make
differential` runs many.
"""

import codecs
import csv
import io
import json
import os
import re
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder.config.source import SourceConfig
from embedder.core.units import Task
from embedder.source.columns import inspect_source
from embedder.source.documents import read_units
from embedder.source.shards import list_shards
from tests.source.conftest import COMPRESS

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "15"))
TYPES = {"n": "int64", "x": "double", "tag": "string"}
INT64 = range(-(2**63), 2**63)
PLAIN = {
    "n": re.compile(r"-?\d+", re.ASCII),
    "x": re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?|nan|-?inf", re.ASCII),
    "tag": re.compile(".*", re.S),
}
MISSING = object()
"""Allowed in place of a value: the record may also be quarantined."""

FOLDERS = ["", "deep/er/", "year=2024/lang=de/", "_dlt_load=1/", "rep [2024]/", "50% off #1/", "über/", "a b/~/"]
STEMS = ["a", "File::Spec", "x[1]", "what?", "*", "~", "Ω #%20", "a.b.c", "-", "_=1"]
IGNORED = ["_SUCCESS", ".hidden.jsonl", "_tmp/a.jsonl", ".git/a.txt", "readme.md", "deep/notes", "_delta.jsonl"]

plain_texts = st.text(st.sampled_from("abc XYZ.,;:!?'\"\\/-_#{}[]01\n\tüß東京👩\u00a0"), min_size=1, max_size=40)
odd_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
texts = plain_texts | odd_texts | st.sampled_from(["\ufeffbom", "\r", "a\rb\r\nc", "\x00", " ", "\u2028", "\x1b[31m", "x" * 5000])
ids = st.text(st.sampled_from("abcdefgh:/#-_.0123"), min_size=1, max_size=12) | odd_texts | st.integers(-(2**70), 2**70)
ints = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5)
finite = st.floats(allow_nan=False, allow_infinity=False)
number_texts = st.sampled_from(
    [
        "1_000",
        "1e400",
        "nan",
        "inf",
        "-Infinity",
        " 12 ",
        "٣",
        "0x10",
        "+1",
        "1.",
        ".5",
        "1e3",
        "007",
        "9" * 25,
        "1.0",
        "-0",
        "1,5",
        "true",
        "",
    ]
)
ns = st.none() | ints | st.integers(-(2**70), 2**70) | finite | number_texts | st.booleans()
xs = st.none() | finite | st.integers(-(2**53), 2**53) | st.integers(-(2**70), 2**70) | number_texts | st.booleans()
tags = st.none() | texts | ints | st.booleans() | st.lists(st.integers(0, 9), max_size=2)
records = st.fixed_dictionaries({"id": ids, "text": texts | st.none() | st.integers()}, optional={"n": ns, "x": xs, "tag": tags})
clean_records = st.fixed_dictionaries({"id": st.uuids().map(str), "text": plain_texts, "n": ints, "x": finite, "tag": plain_texts})


@dataclass(frozen=True)
class File:
    """A shard's name and bytes, and its records as an independent reader finds them."""

    name: str
    data: bytes
    records: list[Mapping[str, Any]]


@st.composite
def json_files(draw: st.DrawFn) -> tuple[str, bytes, list[Mapping[str, Any]]]:
    rows = draw(st.lists(records, max_size=6)) + draw(st.lists(clean_records, min_size=7, max_size=9))
    layout = draw(st.sampled_from(["lines", "lines", "crlf", "array", "pretty array", "pretty objects"]))
    is_ascii = draw(st.booleans())
    indent = 2 if layout.startswith("pretty") else None
    parts = [json.dumps(row, ensure_ascii=is_ascii, indent=indent) for row in rows]
    if layout.endswith("array"):
        text = json.dumps(rows, ensure_ascii=is_ascii, indent=indent)
    else:
        text = ("\r\n" if layout == "crlf" else "\n").join(parts) + draw(st.sampled_from(["", "\n"]))
    found = json.loads("[" + ",".join(parts) + "]", parse_float=Decimal)
    suffix = draw(st.sampled_from([".json", ".jsonl", ".ndjson"]) if layout in ("lines", "crlf") else st.just(".json"))
    return suffix, draw(encoded(text)), found


@st.composite
def csv_files(draw: st.DrawFn) -> tuple[str, bytes, list[Mapping[str, Any]]]:
    names = draw(st.permutations(["id", "text", "n", "x", "tag", "other"]))
    rows = draw(st.lists(records, max_size=6)) + draw(st.lists(clean_records, min_size=7, max_size=9))
    buffer = io.StringIO(newline="")
    is_minimal = draw(st.booleans()) and not any("\r" in str(value) for row in rows for value in row.values())
    quoting = csv.QUOTE_MINIMAL if is_minimal else csv.QUOTE_ALL
    writer = csv.writer(buffer, quoting=quoting, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
    cells = [[str(row.get(name, "")).replace("\x00", "") for name in names] for row in rows]
    writer.writerows([names, *cells])
    found = [dict(zip(names, row, strict=True)) for row in csv.reader(io.StringIO(buffer.getvalue(), newline=""), strict=True)][1:]
    return ".csv", draw(encoded(buffer.getvalue())), found


@st.composite
def encoded(draw: st.DrawFn, text: str) -> bytes:
    """Encode as UTF-8, with or without a byte order mark, or as UTF-16 or UTF-32 with one."""
    # the mark of UTF-16 and a first NUL are the mark of UTF-32
    wide = ["utf-16", "utf-16-be"] if not text.startswith("\0") else []
    kind = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-32", *wide]))
    return (codecs.BOM_UTF16_BE if kind == "utf-16-be" else b"") + text.encode(kind)


@st.composite
def parquet_files(draw: st.DrawFn) -> tuple[str, bytes, list[Mapping[str, Any]]]:
    """Write with DuckDB, in its own types, and read the same back with DuckDB."""
    id_type, n_type, x_type = (
        draw(st.sampled_from(kinds)) for kinds in (["VARCHAR", "UUID", "BIGINT"], ["BIGINT", "INTEGER", "UTINYINT"], ["DOUBLE", "FLOAT"])
    )
    id_values = {"VARCHAR": st.uuids().map(str) | odd_texts, "UUID": st.uuids().map(str), "BIGINT": ints}[id_type]
    # DuckDB packs a difference of 32-bit integers into 33 bits, which pyarrow refuses by name: half of their range
    n_values = {"BIGINT": ints, "INTEGER": st.integers(-(2**30), 2**30), "UTINYINT": st.integers(0, 255)}[n_type]
    x_values = st.floats(width=32 if x_type == "FLOAT" else 64)
    row = st.tuples(id_values, plain_texts | odd_texts | st.none(), n_values | st.none(), x_values | st.none(), texts | st.none())
    rows = draw(st.lists(row, min_size=1, max_size=12))
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as database:
        path = f"{folder}/t.parquet"
        database.execute(f'CREATE TABLE t ("id" {id_type}, "text" VARCHAR, "n" {n_type}, "x" {x_type}, "tag" VARCHAR)')
        database.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
        codec, version = draw(st.sampled_from(["snappy", "zstd", "uncompressed"])), draw(st.sampled_from(["V1", "V2"]))
        database.execute(f"COPY t TO '{path}' (FORMAT parquet, COMPRESSION {codec}, PARQUET_VERSION {version}, ROW_GROUP_SIZE 2048)")
        found = database.execute(f"SELECT * FROM '{path}'")
        names = [column[0] for column in found.description]
        return ".parquet", Path(path).read_bytes(), [dict(zip(names, each, strict=True)) for each in found.fetchall()]


@st.composite
def files(draw: st.DrawFn, made: st.SearchStrategy[tuple[str, bytes, list[Mapping[str, Any]]]]) -> list[File]:
    """Name and compress some shards, with the suffix of the compression or, for what is not parquet, without."""
    found = {}
    for _ in range(draw(st.integers(1, 3))):
        suffix, data, rows = draw(made)
        compression = "" if suffix == ".parquet" else draw(st.sampled_from(["", "", *COMPRESS]))
        hidden = bool(compression) and draw(st.booleans())
        name = draw(st.sampled_from(FOLDERS)) + draw(st.sampled_from(STEMS)) + suffix + ("" if hidden else compression)
        found[name] = File(name, COMPRESS[compression](data), rows)
    return list(found.values())


def exact_int(value: Any) -> Any:
    """Return a value as 64-bit integer; MISSING if it is none."""
    if isinstance(value, str):
        value = (
            Decimal(value.strip(" \t")) if re.fullmatch(r"[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?[ \t]*", value, re.ASCII) else None
        )
        if value is None:
            return MISSING
    if isinstance(value, bool) or (isinstance(value, Decimal) and value != value.to_integral_value()):
        return MISSING
    return int(value) if int(value) in INT64 else MISSING


def exact_double(value: Any) -> Any:
    """Return the nearest double of a fraction, and an integer if a double holds it; MISSING for all else."""
    if isinstance(value, str):
        if not re.fullmatch(r"[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?[ \t]*", value, re.ASCII):
            return MISSING
        value = Decimal(value.strip(" \t")) if re.search("[.eE]", value) else int(value)
    if isinstance(value, bool):
        return MISSING
    if isinstance(value, int):
        return float(value) if abs(value) < 2**1000 and int(float(value)) == value else MISSING
    if isinstance(value, Decimal):
        near = float(value)
        return near if abs(near) != float("inf") and bool(near) == bool(value) else MISSING
    return value


def exact_text(value: Any) -> Any:
    return value if isinstance(value, str) else MISSING


EXACT: dict[str, Callable[[Any], Any]] = {"n": exact_int, "x": exact_double, "tag": exact_text}


def is_same(found: Any, expected: Any) -> bool:
    """Compare bit by bit: -0.0 is not 0.0, and all NaN are one."""
    if isinstance(found, float) and isinstance(expected, float):
        return found != found if expected != expected else struct.pack("d", found) == struct.pack("d", expected)
    return type(found) is type(expected) and bool(found == expected)


def is_clean(record: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether nothing about a record is a reason to quarantine it."""
    text, id_ = record.get("text"), record.get("id")
    if not isinstance(text, str) or not text.strip() or id_ in (None, "") or str(id_) in {str(each.get("id")) for each in before}:
        return False
    values = [(name, record[name]) for name in TYPES if record.get(name) is not None]
    if isinstance(record.get("n"), Decimal):  # an integer written as a fraction may have lost digits: refused beyond 2^53
        return False
    return all(EXACT[name](value) is not MISSING and PLAIN[name].fullmatch(str(value)) for name, value in values)


def check(found: Sequence[File], metadata: pa.Schema | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "source"
        for name, data in [(each.name, each.data) for each in found] + [(name, b"x") for name in IGNORED]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        source = SourceConfig(uri=str(root), id_column="id", metadata_columns=tuple(TYPES), metadata_types=TYPES, rows_per_unit=5)
        listing = list_shards(source)
        assert {shard.uri for shard in listing.shards} == {str(root / each.name) for each in found}
        assert sum(each.count for each in listing.ignored.values()) == len(IGNORED)
        schema = inspect_source(source, listing.shards)
        units = list(read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, schema))
    documents = [row for unit in units for row in unit.documents.to_pylist()]
    rejects = [row for unit in units for row in unit.quarantined.to_pylist()]
    for file in found:
        uri = str(root / file.name)
        read = {row["row"]: row for row in documents if row["shard"] == uri}
        refused = {row["row"]: row["reason"] for row in rejects if row["shard"] == uri}
        assert sorted([*read, *refused]) == list(range(len(file.records))), "each record is once here or there"
        for number, record in enumerate(file.records):
            if number in refused:
                assert not is_clean(record, file.records[:number]), (refused[number], record)
                continue
            row = read[number]
            assert row["doc_id"] == str(record["id"]), record
            assert row["text"] == record["text"], record
            for name in TYPES:
                value = record.get(name)
                if value is None or (value == "" and file.name.count(".csv")):
                    assert row[name] is None or (name == "tag" and row[name] == ""), record
                else:
                    expected = EXACT[name](value)
                    assert is_same(row[name], expected) or (name == "tag" and expected is MISSING), (name, row[name], record)


quiet = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@quiet
@given(files(json_files()))
def test_json_in_any_layout_encoding_and_compression_gives_the_records_of_pythons_json(found: list[File]) -> None:
    check(found, None)


@quiet
@given(files(csv_files()))
def test_csv_in_any_encoding_and_compression_gives_the_records_of_pythons_csv(found: list[File]) -> None:
    check(found, None)


@quiet
@given(files(parquet_files()))
def test_parquet_gives_the_records_that_duckdb_reads(found: list[File]) -> None:
    check(found, None)


@quiet
@given(
    st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(STEMS), texts), min_size=1, max_size=4, unique_by=lambda each: each[:2]),
    st.data(),
)
def test_a_text_file_is_one_document_with_every_character(found: list[tuple[str, str, str]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for place, stem, text in found:
            path = Path(folder) / f"{place}{stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.draw(encoded(text)))
        source = SourceConfig(uri=folder)
        units = list(read_units(Task("0" * 16, "0" * 32, list_shards(source).shards), source, pa.schema([])))
        read = {row["shard"]: row["text"] for unit in units for row in unit.documents.to_pylist()}
        refused = {row["shard"]: row["reason"] for unit in units for row in unit.quarantined.to_pylist()}
        for place, stem, text in found:
            uri = str(Path(folder) / f"{place}{stem}.txt")
            assert (uri in read) != (uri in refused)
            # a byte order mark at the start is not text
            assert read.get(uri, text).removeprefix("\ufeff") == text.removeprefix("\ufeff")
            assert uri in read or not text.strip("\ufeff").strip(), refused[uri]
