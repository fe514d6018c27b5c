import json

import pyarrow as pa
import pytest


def test_records_become_documents_with_unchanged_text(write_file, read):
    path = write_file("a.jsonl", [{"text": "  spaces stay \n", "id": "x"}, {"text": "Ünïcödé 🙂", "id": "y"}])
    got = read(path, id_column="id")
    assert got.documents.drop(["content_hash"]).to_pylist() == [
        {"doc_id": "x", "text": "  spaces stay \n", "shard": str(path), "row": 0},
        {"doc_id": "y", "text": "Ünïcödé 🙂", "shard": str(path), "row": 1},
    ]


def test_documents_are_named_by_shard_and_row_if_no_id_is_set(write_file, read):
    path = write_file("a.jsonl", 'not json\n\n  \n{"text": "x"}\n')
    got = read(path)
    assert got.documents["doc_id"].to_pylist() == [f"{path}#1"]
    assert got.quarantined["doc_id"].to_pylist() == [f"{path}#0"]


def test_each_bad_line_is_quarantined_with_its_reason(write_file, read):
    lines = {
        b'{"id": "a", "text": "good"}': None,
        b'{"id": "b", "text": ': "malformed",
        b'["id", "text"]': "malformed",
        b"7": "malformed",
        b'{"id": "c", "text": "caf\xe9"}': "undecodable",
        b'{"id": "d", "text": "\\ud83d alone"}': "undecodable",
        b'{"id": "e", "text": null}': "null_text",
        b'{"id": "f"}': "null_text",
        b'{"id": "g", "text": ""}': "empty_text",
        b'{"id": "h", "text": " \\u00a0\\n"}': "empty_text",
        b'{"id": "i", "text": 7}': "not_text",
        b'{"id": "j", "text": ["x"]}': "not_text",
        b'{"text": "no id"}': "missing_id",
        b'{"id": null, "text": "null id"}': "missing_id",
        b'{"id": "", "text": "empty id"}': "missing_id",
        b'{"id": true, "text": "bool id"}': "missing_id",
        b'{"id": [1], "text": "list id"}': "missing_id",
        b'{"id": NaN, "text": "NaN id"}': "missing_id",
        b'{"id": "\\udc00", "text": "surrogate id"}': "missing_id",
        b'{"id": "a", "text": "again"}': "duplicate_id",
        b'{"n": ' + b"9" * 5000 + b"}": "malformed",
        b"[" * 100_000: "malformed",
    }
    got = read(write_file("a.jsonl", b"\n".join(lines)), id_column="id")
    assert got.texts == ["good"]
    assert got.reasons == [(row, reason) for row, reason in enumerate(lines.values()) if reason]
    assert got.quarantined["doc_id"].to_pylist()[5:9] == ["e", "f", "g", "h"]
    for excerpt in got.quarantined["excerpt"].to_pylist():
        assert excerpt is None or len(excerpt) <= 200
    got.quarantined.validate(full=True)


def test_numbers_are_document_ids(write_file, read):
    path = write_file("a.jsonl", '{"id": 7, "text": "x"}\n{"id": 8.0, "text": "x"}\n{"id": 7.0, "text": "x"}\n{"id": 1.5, "text": "x"}')
    got = read(path, id_column="id")
    assert got.documents["doc_id"].to_pylist() == ["7", "8", "1.5"]
    assert got.reasons == [(2, "duplicate_id")]


def test_present_parts_of_a_text_are_joined_by_one_space(write_file, read):
    records = [
        {"title": "A", "text": "b"},
        {"text": "b"},
        {"title": "", "text": "b"},
        {"title": "A", "text": None},
        {"title": "", "text": ""},
        {"title": None},
        {"title": 1, "text": "b"},
        {"title": "", "text": None},
    ]
    got = read(write_file("a.jsonl", records), text_columns=["title", "text"])
    assert got.texts == ["A b", "b", "b", "A"]
    assert got.reasons == [(4, "empty_text"), (5, "null_text"), (6, "not_text"), (7, "empty_text")]


def test_a_dot_descends_into_an_object_unless_the_key_contains_it(write_file, read):
    records = [{"a": {"b": {"text": "deep"}}, "m": {"url": "u"}}, {"a.b.text": "flat", "a": {"b": {"text": "deep"}}}, {"a": {"b": 1}}]
    got = read(write_file("a.jsonl", records), text_columns="a.b.text", metadata_columns=["m.url"])
    assert got.texts == ["deep", "flat"]
    assert got.documents["m_url"].to_pylist() == ["u", None]
    assert got.reasons == [(2, "null_text")]


def test_metadata_keeps_its_types(write_file, read):
    records = [
        {"text": "x", "stars": 1, "price": 1, "ok": True, "tags": ["a"], "author": {"name": "n", "age": 1}, "any": 1, "none": None},
        {"text": "x", "stars": None, "price": 2.5, "ok": None, "tags": [], "author": {"name": "m"}, "any": "one"},
    ]
    names = ["stars", "price", "ok", "tags", "author", "any", "none"]
    table = read(write_file("a.jsonl", records), metadata_columns=names).documents.select(names)
    assert table.schema.types == [
        pa.int64(),
        pa.float64(),
        pa.bool_(),
        pa.list_(pa.string()),
        pa.struct([("name", pa.string()), ("age", pa.int64())]),
        pa.string(),
        pa.string(),
    ]
    assert table.to_pylist()[0] == {**{name: records[0][name] for name in names}, "any": "1"}
    assert table.to_pylist()[1]["author"] == {"name": "m", "age": None}


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.int64(), "seven"),
        (pa.int64(), 1.5),
        (pa.int64(), 2**64),
        (pa.int32(), 2**31),
        (pa.float64(), [1]),
        (pa.bool_(), 2),
        (pa.timestamp("us", "UTC"), "yesterday"),
        (pa.timestamp("us", "UTC"), 1700000000),
        (pa.date32(), "2024-13-01"),
        (pa.list_(pa.int64()), 1),
        (pa.list_(pa.int64()), [1, "x"]),
        (pa.struct([("a", pa.int64())]), {"a": 1, "b": 2}),
        (pa.struct([("a", pa.int64())]), [1]),
        (pa.string(), "\ud800"),
    ],
)
def test_metadata_that_does_not_fit_its_type_is_quarantined_by_name_and_value(write_file, read, type_, value):
    path = write_file("a.jsonl", [{"text": "x", "m": value}, {"text": "y", "m": None}])
    got = read(path, pa.schema([("m", type_)]), metadata_columns=["m"])
    assert got.texts == ["y"]
    assert got.reasons == [(0, "metadata_type")]
    assert got.quarantined["excerpt"][0].as_py().startswith("m=")
    assert got.quarantined["excerpt"][0].as_py().endswith(f"is not {type_}")


def test_a_line_longer_than_a_unit_is_read(write_file, read):
    text = "x" * (3 << 20)
    got = read(write_file("a.jsonl.gz", [{"text": text}, {"text": "y"}]))
    assert got.texts == [text, "y"]


def test_windows_line_ends_and_a_missing_last_newline_are_read(write_file, read):
    assert read(write_file("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}')).texts == ["a", "b"]


def test_quarantine_excerpts_hold_the_value(write_file, read):
    got = read(write_file("a.jsonl", [{"text": {"a": 1}}, {"text": "x"}]), text_columns="text")
    assert json.loads(got.quarantined["excerpt"][0].as_py()) == {"a": 1}


def test_keys_that_a_column_cannot_have_are_kept_as_text_or_quarantined(write_file, read):
    path = write_file("a.jsonl", [{"text": "x", "m": {"A": 1, "a": 2}}, {"text": "y", "m": {"\ud800": 1}}])
    got = read(path, metadata_columns=["m"])
    assert got.documents["m"].to_pylist() == ['{"A": 1, "a": 2}']
    assert got.reasons == [(1, "metadata_type")]
