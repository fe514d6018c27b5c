import io

import pyarrow as pa
import pytest

from embedder.core.errors import SourceError

TEXTS = ["a", "bü", "c"]


def to_ipc(table, new=pa.ipc.new_file, **options):
    file = io.BytesIO()
    with new(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return file.getvalue()


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_each_layout_of_text_is_read(write_file, read, type_, new, compression):
    table = pa.table({"text": pa.array(TEXTS).cast(type_), "n": pa.array([1, 2, None], pa.uint64())})
    got = read(write_file("a.arrow", to_ipc(table, new, compression=compression)), metadata_columns={"copy": "text", "n": "n"})
    assert got.texts == TEXTS
    assert got.documents["n"].type == pa.decimal128(20, 0)


def test_a_value_that_no_column_holds_quarantines_its_record(write_file, read):
    at = pa.array([0, 1, 1_000], pa.timestamp("ns"))
    got = read(write_file("a.feather", to_ipc(pa.table({"text": TEXTS, "at": at}))), metadata_columns=["at"])
    assert got.texts == ["a", "c"]
    assert got.reasons == [(1, "metadata_type")]


def test_bytes_that_are_not_utf8_quarantine_their_record(write_file, read):
    table = pa.table({"text": pa.array([b"a", b"\xff"]).view(pa.string())})
    assert read(write_file("a.arrow", to_ipc(table))).reasons == [(1, "undecodable")]


def test_a_stream_without_its_end_is_a_source_error(write_file, read):
    data = to_ipc(pa.table({"text": TEXTS}), pa.ipc.new_stream)
    assert read(write_file("a.arrow", data)).texts == TEXTS
    with pytest.raises(SourceError, match="the mark that ends an Arrow stream is missing"):
        read(write_file("a.arrow", data[:-8]))


def test_offsets_beyond_the_values_are_a_source_error(write_file, read):
    data = to_ipc(pa.table({"text": ["abcdefgh", "ijklmnop"]}))
    offsets = b"\0\0\0\0\x08\0\0\0\x10\0\0\0"
    assert data.count(offsets) == 1
    with pytest.raises(SourceError, match=r"a.arrow: cannot be read to its end"):
        read(write_file("a.arrow", data.replace(offsets, b"\0\0\0\0\xff\xff\xff\x0f\x10\0\0\0")))
