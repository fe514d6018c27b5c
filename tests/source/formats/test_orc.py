import io
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.orc
import pytest

from embedder.core.errors import SourceError


def to_orc(table, **options):
    file = io.BytesIO()
    pa.orc.write_table(table, file, **options)
    return file.getvalue()


def test_each_type_is_exact(write_file, read):
    values = {"n": 2**62, "x": 0.1, "d": Decimal("1.50"), "day": date(3000, 1, 1), "tags": ["a", None], "meta": {"n": 1}, "raw": b"\xff"}
    table = pa.table({"text": ["a"], **{name: [value] for name, value in values.items()}})
    got = read(write_file("a.orc", to_orc(table)), metadata_columns=[*values, "meta.n"])
    assert got.documents.select([*values, "meta_n"]).to_pylist() == [values | {"meta_n": 1}]


def test_a_time_is_in_microseconds_and_one_that_pyarrow_cannot_read_is_a_source_error(write_file, read):
    table = pa.table({"text": ["a"], "at": pa.array([datetime(2262, 1, 1)], pa.timestamp("us"))})
    assert read(write_file("a.orc", to_orc(table)), metadata_columns=["at"]).documents["at"].type == pa.timestamp("us", "UTC")
    table = pa.table({"text": ["a"], "at": pa.array([datetime(3000, 1, 1)], pa.timestamp("us"))})
    path = write_file("b.orc", to_orc(table))
    assert read(path).texts == ["a"]
    with pytest.raises(SourceError, match=r"b.orc: .*out of range for nanosecond"):
        read(path, metadata_columns=["at"])


def test_a_name_with_a_dot_is_not_taken_for_a_field(write_file, read):
    table = pa.table({"text": ["x"], "a": [{"b": 1}], "a.b": ["dotted"]})
    assert read(write_file("a.orc", to_orc(table)), metadata_columns={"found": "a.b"}).documents["found"].to_pylist() == ["dotted"]


def test_rows_are_numbered_over_stripes(write_file, read):
    texts = [f"{number:07d}" * 60 for number in range(12_000)]
    data = to_orc(pa.table({"text": texts}), stripe_size=1 << 20, batch_size=1000)
    assert pa.orc.ORCFile(io.BytesIO(data)).nstripes > 1
    got = read(write_file("a.orc", data))
    assert got.documents["row"].to_pylist() == list(range(len(texts)))
    assert got.texts == texts
