import io
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

import fastavro
import pyarrow as pa
import pytest

from embedder.core.errors import ConfigError, SourceError


def to_avro(fields, records, codec="null", **options):
    file = io.BytesIO()
    fastavro.writer(file, {"type": "record", "name": "doc.R", "fields": fields}, records, codec=codec, **options)
    return file.getvalue()


TEXT = {"name": "text", "type": ["null", "string"]}
VALUES = {
    "i": ("int", 7, pa.int32(), 7),
    "l": ("long", 2**62, pa.int64(), 2**62),
    "f": ("float", 0.5, pa.float32(), 0.5),
    "b": (["boolean", "null"], None, pa.bool_(), None),
    "raw": ("bytes", b"\xff", pa.binary(), b"\xff"),
    "kind": ({"type": "enum", "name": "Kind", "symbols": ["A", "B"]}, "B", pa.string(), "B"),
    "again": ("doc.Kind", "A", pa.string(), "A"),
    "price": (
        {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
        Decimal("1.50"),
        pa.decimal128(9, 2),
        Decimal("1.50"),
    ),
    "day": ({"type": "int", "logicalType": "date"}, date(3000, 1, 1), pa.date32(), date(3000, 1, 1)),
    "at": (
        {"type": "long", "logicalType": "timestamp-micros"},
        datetime(3000, 1, 1, 0, 0, 0, 1, UTC),
        pa.timestamp("us", "UTC"),
        datetime(3000, 1, 1, 0, 0, 0, 1, UTC),
    ),
    "key": ({"type": "string", "logicalType": "uuid"}, UUID(int=1), pa.string(), str(UUID(int=1))),
    "tags": ({"type": "array", "items": ["null", "string"]}, ["a", None], pa.list_(pa.string()), ["a", None]),
    "counts": ({"type": "map", "values": "long"}, {"a": 1}, pa.map_(pa.string(), pa.int64()), [("a", 1)]),
    "meta": (
        {"type": "record", "name": "M", "fields": [{"name": "n", "type": "long"}]},
        {"n": 3},
        pa.struct([("n", pa.int64())]),
        {"n": 3},
    ),
}


def test_each_type_is_exact(write_file, read):
    fields = [TEXT, *({"name": name, "type": type_} for name, (type_, *_) in VALUES.items())]
    records = [{"text": "a"} | {name: value for name, (_, value, *_) in VALUES.items()}]
    got = read(write_file("a.avro", to_avro(fields, records)), metadata_columns=[*VALUES])
    assert got.documents.select([*VALUES]).to_pylist() == [{name: wanted for name, (*_, wanted) in VALUES.items()}]
    assert {name: got.documents[name].type for name in VALUES} == {name: type_ for name, (_, _, type_, _) in VALUES.items()}


@pytest.mark.parametrize(
    ("type_", "problem"),
    [
        (["null", "int", "string"], "avro's union of int32, string"),
        ({"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"}, "avro's duration"),
        ({"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}, "avro's recursive record"),
    ],
)
def test_a_type_that_no_column_holds_is_refused_by_name_if_its_column_is_read(write_file, read, type_, problem):
    value = {"D": bytes(12), "L": {"next": None}}.get(type_["name"] if isinstance(type_, dict) else "", "x")
    path = write_file("a.avro", to_avro([TEXT, {"name": "odd", "type": type_}], [{"text": "a", "odd": value}]))
    assert read(path).texts == ["a"]
    with pytest.raises(ConfigError, match=problem):
        read(path, metadata_columns=["odd"])


@pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard", "bzip2", "xz"])
def test_each_codec_is_read(write_file, read, codec):
    assert read(write_file("a.avro", to_avro([TEXT], [{"text": "a"}] * 3, codec))).texts == ["a"] * 3


def test_bytes_that_are_not_utf8_quarantine_their_record(write_file, read):
    data = to_avro(
        [TEXT, {"name": "tags", "type": {"type": "array", "items": "string"}}],
        [{"text": "good", "tags": ["XX"]}, {"text": "XX", "tags": []}],
    )
    got = read(write_file("a.avro", data.replace(b"XX", b"\xff\xfe")), metadata_columns=["tags"])
    assert got.reasons == [(0, "metadata_type"), (1, "undecodable")]


def test_a_block_with_fewer_records_than_it_holds_is_a_source_error(write_file, read):
    data = to_avro([TEXT], [{"text": "a"}] * 5, sync_marker=b"\xaa" * 16)
    at = data.index(b"\xaa" * 16) + 16
    assert data[at] == 10
    with pytest.raises(SourceError, match="a block holds more than the 4 records that it states"):
        read(write_file("a.avro", data[:at] + b"\x08" + data[at + 1 :]))


def test_without_the_extra_the_format_is_refused_before_a_record_is_read(write_file, read, monkeypatch):
    monkeypatch.delitem(sys.modules, "embedder.source.formats.avro", raising=False)
    monkeypatch.setitem(sys.modules, "fastavro", None)
    with pytest.raises(ConfigError, match=r"the format avro needs the package 'fastavro', .*pip install '.\[avro\]' from the checkout"):
        read(write_file("a.avro", to_avro([TEXT], [{"text": "a"}])))
