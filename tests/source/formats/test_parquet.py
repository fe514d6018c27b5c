import base64

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, SourceError
from embedder.core.units import Task
from embedder.run import embed
from embedder.source import documents
from embedder.source.documents import read_units, slice_shard
from embedder.source.formats import parquet
from embedder.source.formats.parquet import slice_row_groups
from embedder.source.formats.rows import Reading
from embedder.source.shards import list_shards

NO_METADATA = pa.schema([])


def invalid_strings(*values):
    """Return strings with bytes that are not UTF-8, which occur in parquet files."""
    array = pa.array(values, pa.binary())
    valid, offsets, data = array.buffers()
    return pa.StringArray.from_buffers(len(array), offsets, data, valid)


@pytest.mark.parametrize(
    "type_",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())],
)
def test_every_kind_of_string_is_text_id_and_metadata(write_file, read, type_):
    values = ["x", "y", "ä", None]
    column = (
        pa.array(values, pa.string()).cast(type_)
        if not pa.types.is_dictionary(type_)
        else pa.array(values, type_.value_type).dictionary_encode().cast(type_)
    )
    got = read(write_file("a.parquet", pa.table({"text": column, "id": column, "m": column})), id_column="id", metadata_columns=["m"])
    assert got.texts == got.documents["doc_id"].to_pylist() == got.documents["m"].to_pylist() == ["x", "y", "ä"]
    assert got.reasons == [(3, "null_text")]


def test_each_bad_row_is_quarantined_with_its_reason(write_file, read):
    ids = pa.array(["a", "b", "c", "d", None, "", "a", "g", "h"])
    texts = invalid_strings(b"good", None, b"", b" \n", b"no id", b"empty id", b"again", b"caf\xe9", b"good too")
    stars = pa.array(["1", "1", "1", "1", "1", "1", "1", "1", "many"])
    path = write_file("a.parquet", pa.table({"id": ids, "text": texts, "stars": stars}))
    got = read(path, id_column="id", metadata_columns=["stars"], metadata_types={"stars": "int32"})
    assert got.texts == ["good"]
    assert got.documents["stars"].to_pylist() == [1]
    reasons = ["null_text", "empty_text", "empty_text", "missing_id", "missing_id", "duplicate_id", "undecodable", "metadata_type"]
    assert got.reasons == list(enumerate(reasons, 1))
    assert got.quarantined["doc_id"].to_pylist() == ["b", "c", "d", None, "", "a", "g", "h"]
    assert got.quarantined["excerpt"].to_pylist()[-2:] == ["caf�", 'stars="many" is not int32']


def test_ids_and_metadata_that_are_not_utf_8_are_quarantined(write_file, read):
    table = pa.table({"id": invalid_strings(b"\xff", b"ok", b"fine"), "text": ["x", "y", "z"], "m": invalid_strings(b"u", b"\xff", b"v")})
    got = read(write_file("a.parquet", table), id_column="id", metadata_columns=["m"])
    assert got.texts == ["z"]
    assert got.reasons == [(0, "undecodable"), (1, "metadata_type")]
    nested = table.set_column(2, "m", pa.StructArray.from_arrays([table["m"].combine_chunks()], ["a"]))
    assert read(write_file("a.parquet", nested), id_column="id", metadata_columns=["m"]).reasons == got.reasons


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (pa.array([1, 2**63], pa.uint64()), ["1", str(2**63)]),
        (pa.array([1, 2], pa.decimal128(20, 0)), ["1", "2"]),
        (pa.array([1.0, 1.5]), ["1", "1.5"]),
    ],
)
def test_numbers_are_document_ids(write_file, read, ids, named):
    assert read(write_file("a.parquet", pa.table({"id": ids, "text": ["x", "y"]})), id_column="id").documents["doc_id"].to_pylist() == named


def test_nan_and_null_are_not_ids(write_file, read):
    got = read(write_file("a.parquet", pa.table({"id": [1.0, float("nan"), None], "text": ["x", "y", "z"]})), id_column="id")
    assert got.reasons == [(1, "missing_id"), (2, "missing_id")]


def test_fields_are_read_from_structs(write_file, read):
    meta = pa.array([{"url": "u", "big": "b"}, None, {"url": None, "big": "b"}])
    body = pa.array([{"en": {"text": "x"}}, {"en": {"text": "y"}}, {"en": None}])
    table = pa.table({"meta": meta, "body": body, "meta.flat": ["f"] * 3})
    got = read(write_file("a.parquet", table), text_columns=["body.en.text"], metadata_columns=["meta.url", "meta.flat"])
    assert got.documents.select(["text", "meta_url", "meta_flat"]).to_pylist() == [
        {"text": "x", "meta_url": "u", "meta_flat": "f"},
        {"text": "y", "meta_url": None, "meta_flat": "f"},
    ]
    assert got.reasons == [(2, "null_text")]


def test_parts_of_a_text_are_joined_as_in_json(write_file, read):
    table = pa.table({"title": ["A", None, "", None, "", None], "text": ["b", "b", "b", None, "", ""]})
    got = read(write_file("a.parquet", table), text_columns=["title", "text"])
    assert got.texts == ["A b", "b", "b"]
    assert got.reasons == [(3, "null_text"), (4, "empty_text"), (5, "empty_text")]


def test_metadata_becomes_types_of_a_delta_table(write_file, read):
    table = pa.table(
        {
            "text": ["x", "y"],
            "when": pa.array([1000, None], pa.timestamp("ns")),
            "tags": pa.array([["a"], None], pa.large_list(pa.large_string())),
            "fixed": pa.array([[1, 2], None], pa.list_(pa.uint8(), 2)),
            "big": pa.array([2**64 - 1, 0], pa.uint64()),
            "pairs": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.uint16())),
        }
    )
    names = table.column_names[1:]
    got = read(write_file("a.parquet", table), metadata_columns=names).documents.select(names)
    assert [str(type_) for type_ in got.schema.types] == [
        "timestamp[us, tz=UTC]",
        "list<item: string>",
        "list<item: int16>",
        "decimal128(20, 0)",
        "map<string, int32>",
    ]
    assert got.slice(0, 1).to_pylist()[0]["fixed"] == [1, 2]
    assert int(got["big"][0].as_py()) == 2**64 - 1


def test_a_value_with_more_fields_than_the_tables_type_is_quarantined(write_file, read):
    path = write_file("a.parquet", pa.table({"text": ["x", "y"], "m": [{"x": 1, "y": None}, {"x": 1, "y": 2}]}))
    got = read(path, pa.schema([("m", pa.struct([("x", pa.int64())]))]), metadata_columns=["m"])
    assert got.documents["m"].to_pylist() == [{"x": 1}]
    assert got.reasons == [(1, "metadata_type")]


@pytest.mark.parametrize("length", [0, 3, 4, 100, 0.3, 0.7, -1, -4, -9])
def test_a_truncated_shard_is_a_source_error(write_file, read, length):
    path = write_file("a.parquet", [{"text": f"text {number}"} for number in range(200)])
    data = path.read_bytes()
    path.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])
    with pytest.raises(SourceError, match=r"a.parquet: cannot be read to its end"):
        read(path, NO_METADATA)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"body": ["x"], "id": ["1"]}, r"b.parquet: no column 'text' \(found: body, id\); set source.text_columns"),
        ({"text": [1], "id": ["1"]}, r"b.parquet: column 'text' is int64, not text; set source.text_columns"),
        ({"text": ["x"]}, r"b.parquet: no column 'id' \(found: text\); set source.id_column"),
        ({"text": ["x"], "id": [[1]]}, r"b.parquet: column 'id' is list<.*>, not text or a number; set source.id_column"),
    ],
)
def test_a_shard_with_other_columns_is_a_source_error(write_file, read, table, message):
    with pytest.raises(SourceError, match=message):
        read(write_file("b.parquet", pa.table(table)), NO_METADATA, id_column="id")


@pytest.mark.parametrize("key", ["text", "m"])
def test_columns_of_one_name_are_refused(write_file, read, key):
    names = ["text", "m", "other"]
    table = pa.table([["x"], ["y"], ["z"]], names=[key if name == "other" else name for name in names])
    with pytest.raises(ConfigError, match=rf"has 2 columns '{key}' \(found: text, m, {key}\)"):
        read(write_file("a.parquet", table), metadata_columns=["m"])
    with pytest.raises(SourceError, match=rf"a.parquet: 2 columns '{key}'"):
        read(write_file("a.parquet", table), pa.schema([("m", pa.string())]), metadata_columns=["m"])


@pytest.mark.parametrize("other", [{}, {"M": [1]}, {"meta": [{"m": 1}]}])
def test_a_shard_without_a_metadata_column_of_that_very_name_is_a_source_error(write_file, read, other):
    write_file("s/a.parquet", pa.table({"text": ["x"], "m": [1]}))
    path = write_file("s/b.parquet", pa.table({"text": ["x"], **other}))
    with pytest.raises(SourceError, match=r"b.parquet: no column 'm' \(found: text"):
        read(path.parent, metadata_columns=["m"])


def test_a_page_with_a_wrong_checksum_is_a_source_error(tmp_path, read):
    path = tmp_path / "a.parquet"
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"text": ["first", "second"]}), path, write_page_checksum=True, **plain)
    path.write_bytes(path.read_bytes().replace(b"second", b"secund"))
    with pytest.raises(SourceError, match=r"a.parquet: cannot be read to its end \(could not verify page integrity, CRC checksum"):
        read(path)


def test_an_encrypted_shard_is_named_as_such(tmp_path, read):
    keys = pe.CryptoFactory(lambda _: PlainKeys())
    properties = keys.file_encryption_properties(
        pe.KmsConnectionConfig(), pe.EncryptionConfiguration(footer_key="k", column_keys={"k": ["text"]}, double_wrapping=False)
    )
    table = pa.table({"text": ["x"]})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(SourceError, match=r"a.parquet: .*encrypted metadata"):
        read(tmp_path / "a.parquet")


class PlainKeys(pe.KmsClient):
    """Wraps keys in base64 alone."""

    def wrap_key(self, key_bytes, master_key_identifier):
        """Return a key as text."""
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, master_key_identifier):
        """Return the key of a text."""
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("table", [pa.table({}), pa.table({"text": pa.array([], pa.string())})])
def test_a_shard_without_columns_is_refused_and_one_without_row_groups_is_empty(tmp_path, read, table):
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema):
        pass
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 0
    if table.num_columns:
        assert read(tmp_path / "a.parquet").num_records == 0
    else:
        with pytest.raises(ConfigError, match=r"a.parquet has no column 'text' \(found: \)"):
            read(tmp_path / "a.parquet")


def test_wide_row_groups_are_read_through_buffers_in_small_batches(write_file, read, monkeypatch):
    rows = [{"text": f"{number} " * 200, "id": number} for number in range(100)]
    path = write_file("a.parquet", pa.Table.from_pylist(rows))
    whole = read(path, id_column="id").documents
    monkeypatch.setattr(parquet, "BUFFERED_BYTES", 10)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 2000)
    assert read(path, id_column="id").documents.equals(whole)


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_large_value_that_a_dictionary_repeats_is_read_in_small_batches(tmp_path, store_schema):
    rows, value = 1000, "x" * 100_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts if store_schema else texts.cast(pa.string())}), path, store_schema=store_schema)
    assert path.stat().st_size < 100_000
    source = SourceConfig(uri=str(path))
    with path.open("rb") as file:
        batches = [rows.texts for rows in parquet.read_parquet(file, Reading(list_shards(source).shards[0], None, source, NO_METADATA))]
    assert sum(map(len, batches)) == rows
    assert max(texts.nbytes for texts in batches) <= parquet.BATCH_BYTES + parquet.STEP_ROWS * len(value)


def read_slices(path, slices, **settings):
    source = SourceConfig(uri=str(path), **settings)
    shards = list_shards(source).shards
    for number, (first, stop, row) in enumerate(slices):
        task = Task("k", "v", shards, (first, stop), row, number == len(slices) - 1)
        yield from read_units(task, source, NO_METADATA)


def test_slices_have_the_contents_of_the_whole_shard(write_file, read, monkeypatch):
    rows = [{"text": "" if number % 11 == 0 else f"text {number}", "id": str(number % 31)} for number in range(60)]
    path = write_file("a.parquet", rows)
    monkeypatch.setattr(documents, "SLICE_BYTES", 300)
    slices = slice_shard(list_shards(SourceConfig(uri=str(path))).shards[0], SourceConfig(uri=str(path)))
    assert len(slices) > 2
    for id_column in ("id", None):
        units = list(read_slices(path, slices, id_column=id_column, rows_per_unit=4))
        whole = read(path, NO_METADATA, id_column=id_column)
        assert pa.concat_tables([unit.documents for unit in units]).equals(whole.documents)
        assert pa.concat_tables([unit.quarantined for unit in units]).equals(whole.quarantined)
        assert [unit.last for unit in units] == [False] * (len(units) - 1) + [True]
        assert [unit.first_row for unit in units] == [0, *(unit.stop_row for unit in units[:-1])]
        assert units[-1].stop_row == 60


@pytest.mark.parametrize(
    ("name", "format_", "sliced"), [("a.PARQUET", "auto", True), ("part-0", "parquet", True), ("a.parquet", "csv", False)]
)
def test_the_format_and_not_the_name_decides_whether_a_shard_is_sliced(write_file, monkeypatch, name, format_, sliced):
    source = SourceConfig(uri=str(write_file("a.parquet", [{"text": "x"}]).rename(write_file(name, b""))), format=format_)
    monkeypatch.setattr(embed, "SLICE_BYTES", 1)
    task = Task("k", "v", list_shards(source).shards)
    found = embed.slice_large(task, source, fair_bytes=-1)
    assert [(each.row_groups, each.cut_by_encoders) for each in found] == ([((0, 1), False)] if sliced else [(None, True)])
    assert not embed.slice_large(task, source)[0].cut_by_encoders, "a reader cuts what no run waits for"


def test_slices_cover_all_row_groups_and_hold_enough_bytes(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 2**60, 10_000)
    pq.write_table(pa.table({"n": numbers}), tmp_path / "a.parquet", row_group_size=500)
    path = tmp_path / "a.parquet"
    assert slice_row_groups(path, 100_000, 1 << 30) == [(0, 20, 0)]
    assert slice_row_groups(path, 100_000, 1) == [(group, group + 1, group * 500) for group in range(20)]
    # a row group is 5,000 of the 100,000 bytes: three reach 12,000, and the remaining two join the last slice
    assert slice_row_groups(path, 100_000, 12_000) == [
        (0, 3, 0),
        (3, 6, 1500),
        (6, 9, 3000),
        (9, 12, 4500),
        (12, 15, 6000),
        (15, 20, 7500),
    ]


def test_a_shard_without_rows_is_one_slice_and_one_empty_unit(write_file, read):
    path = write_file("a.parquet", pa.table({"text": pa.array([], pa.string())}))
    source = SourceConfig(uri=str(path))
    assert len(slice_shard(list_shards(source).shards[0], source)) == 1
    assert [(unit.first_row, unit.stop_row, unit.last, len(unit.documents)) for unit in read(path).units] == [(0, 0, True, 0)]


def test_a_text_that_is_too_large_is_quarantined(write_file, read):
    path = write_file("a.parquet", [{"id": "1", "text": "x" * 51}, {"id": "2", "text": "x" * 50}, {"id": "1", "text": "y"}])
    got = read(path, id_column="id", max_record_bytes=50)
    assert got.texts == ["x" * 50]
    assert got.reasons == [(0, "too_large"), (2, "duplicate_id")]
