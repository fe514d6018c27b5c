"""Every layout of JSON is read as its records, whatever the blocks and lengths."""

import json

import pyarrow as pa
import pytest

from embedder.core.errors import SourceError
from embedder.source.formats.json_stream import read_values, split_values
from embedder.source.lines import CutLine

RECORDS = [{"id": str(number), "text": f'te"x\\t [{number}}} ü', "m": {"a": "}", "b": [["]"]]}} for number in range(5)]
LAYOUTS = {
    "lines": "".join(json.dumps(each) + "\n" for each in RECORDS),
    "array on a line": json.dumps(RECORDS),
    "pretty array": json.dumps(RECORDS, indent=2, ensure_ascii=False),
    "array, a record a line": "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
    "pretty objects": "\n".join(json.dumps(each, indent=1) for each in RECORDS),
    "objects on a line": "".join(map(json.dumps, RECORDS)),
    "objects on a line, then lines": "".join(map(json.dumps, RECORDS[:2])) + "\n" + "\n".join(map(json.dumps, RECORDS[2:])) + "\n",
    "arrays after each other": json.dumps(RECORDS[:2]) + "\n" + json.dumps(RECORDS[2:]),
    "lines that end in \\r": "\r".join(map(json.dumps, RECORDS)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beside", [True, False])
def test_the_layout_does_not_change_the_records(write_file, read, tmp_path, layout, beside):
    if beside:
        write_file("0.jsonl", [{"id": "x", "text": "x"}] * 2)
    write_file("a.json", "\n \n" + LAYOUTS[layout])
    got = read(tmp_path, id_column="id", metadata_columns=["m"])
    assert got.documents.filter(pa.compute.field("doc_id") != "x").select(["doc_id", "text", "m"]).to_pylist() == [
        {"doc_id": each["id"], "text": each["text"], "m": each["m"]} for each in RECORDS
    ]
    assert [reason for _, reason in got.reasons] == ["duplicate_id"] * beside


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_do_not_depend_on_blocks(layout):
    data = LAYOUTS[layout].encode()
    whole = [json.loads(each) for each in split_values(iter([data]), 1000)]
    assert whole == RECORDS
    for size in range(1, 90):
        blocks = (data[start : start + size] for start in range(0, len(data), size))
        assert [json.loads(each) for each in split_values(blocks, 1000)] == whole


def test_one_pretty_object_is_one_document(write_file, read):
    assert read(write_file("a.json", json.dumps(RECORDS[0], indent=4)), id_column="id").texts == [RECORDS[0]["text"]]


def test_elements_that_are_no_objects_are_quarantined_one_by_one(write_file, read):
    got = read(
        write_file("a.json", '[{"text": "x"}, 1, "a]", [2, {}], {"text": "y"}, {"text": z}, {"text": "w"}, {"text": "v"},{"text":"u"}]')
    )
    assert got.texts == ["x", "y", "w", "v", "u"]
    assert got.reasons == [(1, "malformed"), (2, "malformed"), (3, "malformed"), (5, "malformed")]


@pytest.mark.parametrize("layout", ["array on a line", "pretty array", "pretty objects", "objects on a line"])
def test_json_that_ends_early_is_a_source_error(write_file, read, layout):
    with pytest.raises(SourceError, match=r"a.json: .*(ends inside a JSON|cut off)"):
        read(write_file("a.json", LAYOUTS[layout][:-3]), pa.schema([]))


@pytest.mark.parametrize("text", ['[{"text": "x"}]]', '[{"text": "x"}}'])
def test_a_bracket_that_closes_nothing_is_a_source_error(write_file, read, text):
    with pytest.raises(SourceError, match="closes nothing"):
        read(write_file("a.json", text), pa.schema([]))


def test_an_array_without_elements_is_an_empty_shard(write_file, read, tmp_path):
    write_file("a.json", " [\n]\n")
    assert read(write_file("b.jsonl", [{"text": "x"}]).parent).num_records == 1


@pytest.mark.parametrize("text", [json.dumps({"data": RECORDS}), json.dumps({"data": RECORDS}, indent=1)])
def test_an_array_wrapped_in_an_object_is_a_source_error_beside_good_shards(write_file, read, tmp_path, text):
    write_file("a.jsonl", [{"text": "x"}])
    write_file("b.json", text)
    with pytest.raises(SourceError, match=r"b.json: no record has a key 'text' \(found: data\); set source.text_columns"):
        read(tmp_path)


@pytest.mark.parametrize("element", ['{"text": "' + "y\\\\" * 200 + '"}', '"' + "y" * 300 + '"', "1" * 300, "[" + '["a"],' * 60 + "1]"])
def test_only_the_start_of_a_value_that_is_too_long_is_kept(element):
    data = f'[{{"text": "x"}}, {element}, {{"text": "z"}}]'.encode()
    for size in (1, 7, 100, 10_000):
        blocks = (data[start : start + size] for start in range(0, len(data), size))
        first, cut, last = split_values(blocks, 200)
        assert (first, last, type(cut)) == (b'{"text": "x"}', b'{"text": "z"}', CutLine)
        assert element.encode().startswith(cut)


def test_a_bad_first_line_does_not_make_the_others_one_value():
    lines = [b'{"id": "b", "text": ', b'{"text": "x"}', b'{"text": "y"}']
    assert list(read_values(iter([b"\n".join(lines) + b"\n"]), 1000)) == lines
