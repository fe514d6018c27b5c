import json

import pyarrow as pa
import pytest

from embedder.core.errors import SourceError


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
    got = read(write_file("a.jsonl", b"".join(line + b"\n" for line in lines)), id_column="id")
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


@pytest.mark.parametrize("end", ['{"text": "cut o', '{"text": "x"', '{"te', b'{"text": "caf\xc3'])
def test_a_last_line_that_is_cut_off_is_a_source_error(write_file, read, end):
    data = b'{"text": "a"}\n{"text": "b"}\n' + (end if isinstance(end, bytes) else end.encode())
    with pytest.raises(SourceError, match=r"a.jsonl: cannot be read to its end \(its last line is cut off"):
        read(write_file("a.jsonl", data))
    assert read(write_file("a.jsonl", data + b"\n")).reasons == [(2, "undecodable" if isinstance(end, bytes) else "malformed")]


def test_an_object_with_a_key_twice_is_malformed_at_any_level(write_file, read):
    path = write_file(
        "a.jsonl", '{"id": 1, "id": 2, "text": "x"}\n{"text": "y", "m": [{"a": 1, "\\u0061": 1}]}\n{"text": "z"}\n{"text": "z"}\n'
    )
    got = read(path)
    assert got.reasons == [(0, "malformed"), (1, "malformed")]
    assert got.quarantined["excerpt"].to_pylist() == [
        "key 'id' 2 times: " + '{"id": 1, "id": 2, "text": "x"}',
        "key 'a' 2 times: " + '{"text": "y", "m": [{"a": 1, "\\u0061": 1}]}',
    ]


def test_numbers_that_a_double_cannot_tell_apart_are_different_ids(write_file, read):
    literals = ["9007199254740993.0", "9007199254740992.0", "1e400", "1e401", "0.1000000000000000001", "0.1", "1e-400", "0.0"]
    got = read(write_file("a.jsonl", "".join(f'{{"id": {each}, "text": "x"}}\n' for each in literals)), id_column="id")
    ids = ["9007199254740993", "9007199254740992", "1E+400", "1E+401", "0.1000000000000000001", "0.1", "1E-400", "0"]
    assert got.documents["doc_id"].to_pylist() == ids


def test_one_number_written_in_two_ways_is_a_duplicate_id(write_file, read):
    literals = ["1", "1.0", "1e0", "10e-1", "0.5", "0.50", "9007199254740993", "9007199254740993.0"]
    got = read(write_file("a.jsonl", "".join(f'{{"id": {each}, "text": "x"}}\n' for each in literals)), id_column="id")
    assert got.documents["doc_id"].to_pylist() == ["1", "0.5", "9007199254740993"]
    assert [reason for _, reason in got.reasons] == ["duplicate_id"] * 5


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_record_that_is_too_large_is_quarantined_and_the_next_is_read(write_file, read, name):
    lines = ['{"text": "x"}', '{"text": "' + "y" * 3_000_000 + '"}', "{}" + " " * 3_000_000, '{"text": "z"}']
    got = read(write_file(name, "\n".join(lines) + "\n"), max_record_bytes=2_000_000)
    assert got.texts == ["x", "z"]
    assert got.reasons == [(1, "too_large"), (2, "too_large")]
    assert got.quarantined["excerpt"].to_pylist() == [line[:200] for line in lines[1:3]]


def test_the_largest_record_that_is_allowed_is_read(write_file, read):
    line = '{"text": "xyz"}'
    for name, content in {"a.jsonl": f"{line}\n{line} \n", "a.json": f"[{line}]"}.items():
        assert read(write_file(name, content), max_record_bytes=len(line)).texts == ["xyz"]


def test_the_end_of_a_huge_record_is_not_searched_for_a_sample(write_file, read, monkeypatch):
    monkeypatch.setattr("embedder.source.formats.jsonl.SAMPLE_RECORD_BYTES", 1 << 20)
    monkeypatch.setattr("embedder.source.formats.jsonl.SAMPLE_BYTES", 100)
    write_file("a.jsonl", '{"text": "x", "n": 1}\n{"text": "' + "y" * (5 << 20) + '"}\n')
    write_file("b.jsonl", '{"text": "' + "y" * (5 << 20) + '"}\n{"text": "z", "n": 2}\n')
    got = read(write_file("c.json", '[{"text": "' + "y" * (5 << 20) + '"}, {"text": "z", "n": 3}]').parent, metadata_columns=["n"])
    assert got.documents["n"].to_pylist() == [1, None, None, 2, None, 3]
