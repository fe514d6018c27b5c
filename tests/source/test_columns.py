from decimal import Decimal

import pyarrow as pa
import pytest

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, SourceError
from embedder.source.columns import inspect_source
from embedder.source.metadata_types import infer_type
from embedder.source.shards import list_shards


@pytest.fixture
def inspect(tmp_path):
    def inspect_folder(known=None, **settings):
        source = SourceConfig(uri=str(tmp_path), **settings)
        return inspect_source(source, list_shards(source).shards, known)

    return inspect_folder


def test_all_problems_are_reported_at_once_one_per_line(write_file, inspect, tmp_path):
    write_file("0000.parquet", [{"id": 1, "text": "x", "title": "t", "tags": ["a"]}])
    with pytest.raises(ConfigError) as caught:
        inspect(text_columns=["body", "id"], id_column="tags", metadata_columns=["url", "title"], metadata_types={"title": "int"})
    found = "(found: id, text, title, tags)"
    assert str(caught.value).split("\n")[:-1] == [
        f"source.text_columns=['body', 'id']: {tmp_path}/0000.parquet has no column 'body' {found}",
        f"source.text_columns=['body', 'id']: {tmp_path}/0000.parquet: 'id' is int64, not text",
        f"source.id_column='tags': {tmp_path}/0000.parquet: 'tags' is list<element: string>, not text or a number",
        f"source.metadata_columns=['url']: {tmp_path}/0000.parquet has no column 'url' {found}",
    ]
    assert (
        str(caught.value)
        .split("\n")[-1]
        .startswith("source.metadata_types={'title': 'int'}: 'int' is not a type; choose string, bool, int8,")
    )


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_missing_column_is_named_in_every_format(write_file, inspect, name):
    write_file(name, "id,title\n1,x\n" if name == "a.csv" else [{"id": 1, "title": "x"}])
    with pytest.raises(ConfigError, match=rf"source.text_columns=\['text'\]: .*{name} has no column 'text' \(found: id, title\)"):
        inspect()


def test_a_json_key_in_any_sampled_record_is_enough(write_file, inspect):
    for number in range(5):
        write_file(f"{number}.jsonl", [{"text": "x"}] if number < 4 else [{"text": "x"}, {"text": "y", "n": 1, "o": {"p": None}}])
    assert inspect(metadata_columns=["n", "o.p"]) == pa.schema([("n", pa.int64()), ("o_p", pa.string())])


def test_a_json_text_column_without_text_is_refused(write_file, inspect):
    write_file("a.jsonl", [{"text": 1}, {"text": None}])
    with pytest.raises(ConfigError, match=r"source.text_columns=\['text'\]: .*a.jsonl: 'text' is int64, not text"):
        inspect()


def test_json_without_a_single_object_is_refused(write_file, inspect):
    write_file("a.json", "1\n[2]\n")
    with pytest.raises(SourceError, match=r"a.json: .*none of its first 2 records is a JSON object: '1'"):
        inspect()


def test_empty_shards_do_not_decide_types(write_file, inspect):
    write_file("a.jsonl", "\n")
    assert inspect(metadata_columns=["n"], metadata_types={"n": "int32"}) == pa.schema([("n", pa.int32())])


def test_text_files_have_no_columns(write_file, inspect):
    write_file("a.txt", "x")
    assert inspect() == pa.schema([])
    with pytest.raises(ConfigError, match=r"source.id_column='id': .*a.txt is a text file, which has no columns"):
        inspect(id_column="id")


def test_a_set_type_overrides_the_tables_which_overrides_the_shards(write_file, inspect):
    write_file("a.jsonl", [{"text": "x", "a": 1, "b": 1, "c": 1}])
    known = pa.schema([("a", pa.float64()), ("b", pa.large_string()), ("other", pa.int8())])
    assert inspect(known, metadata_columns=["a", "b", "c"], metadata_types={"a": "list<int32>"}) == pa.schema(
        [("a", pa.list_(pa.int32())), ("b", pa.string()), ("c", pa.int64())]
    )


def test_types_are_unified_across_formats_and_csv_has_none(write_file, inspect):
    write_file("a.parquet", pa.table({"text": ["x"], "n": pa.array([1], pa.uint8()), "s": [{"a": 1}]}))
    write_file("b.jsonl", [{"text": "x", "n": 1.5, "s": {"b": "x"}}])
    write_file("c.csv", "text,n,s\nx,1,\n")
    assert inspect(metadata_columns=["n", "s"]) == pa.schema(
        [("n", pa.float64()), ("s", pa.struct([("a", pa.int64()), ("b", pa.string())]))]
    )


def test_types_without_a_common_type_are_refused(write_file, inspect):
    write_file("a.parquet", pa.table({"text": ["x"], "n": [1]}))
    write_file("b.jsonl", [{"text": "x", "n": ["a"]}])
    with pytest.raises(ConfigError, match=r"'n' is int64 in .*a.parquet, list<item: string> in .*b.jsonl; set source.metadata_types"):
        inspect(metadata_columns=["n"])


def test_a_parquet_column_that_cannot_become_its_type_is_refused(write_file, inspect):
    write_file("a.parquet", pa.table({"text": ["x"], "n": [["a"]]}))
    with pytest.raises(ConfigError, match=r"source.metadata_columns=\['n'\]: .*'n' is list<.*>, which cannot become int64 \(the table\)"):
        inspect(pa.schema([("n", pa.int64())]), metadata_columns=["n"])


def test_a_type_that_a_delta_table_cannot_hold_is_refused(write_file, inspect):
    write_file("a.parquet", pa.table({"text": ["x"], "n": pa.array([1], pa.time64("us"))}))
    with pytest.raises(ConfigError, match=r"source.metadata_columns=\['n'\]: time64\[us\] has no counterpart in a Delta table"):
        inspect(metadata_columns=["n"])


def test_a_shard_that_cannot_be_opened_is_a_source_error(write_file, inspect):
    write_file("a.parquet", b"not parquet at all")
    with pytest.raises(SourceError, match=r"a.parquet: cannot be read to its end"):
        inspect()


def test_parquet_types_come_from_a_few_shards_spread_over_all(write_file, inspect):
    null = pa.nulls(1)
    columns = [{"n": null, "s": [{"x": 1}]}, {"n": [1], "s": null}, {"n": [1], "s": [{"y": "a"}]}, {"n": ["not opened"]}, {"n": [1.5]}]
    for number, held in enumerate(columns):
        write_file(f"{number}.parquet", pa.table({"text": ["x"], **held}))
    assert inspect(metadata_columns=["n", "s"]) == pa.schema(
        [("n", pa.float64()), ("s", pa.struct([("x", pa.int64()), ("y", pa.string())]))]
    )


def test_a_parquet_column_that_a_sampled_shard_lacks_or_has_in_another_type_is_left_to_the_run(write_file, inspect):
    write_file("a.parquet", pa.table({"body": ["x"]}))
    write_file("b.parquet", pa.table({"text": ["x"], "n": [["a"]]}))
    write_file("c.parquet", pa.table({"text": [1], "n": [1]}))
    with pytest.raises(ConfigError, match=r"'n' is list<.*> in .*b.parquet, int64 in .*c.parquet; set source.metadata_types"):
        inspect(metadata_columns=["n"])
    assert inspect(metadata_columns=["n"], metadata_types={"n": "int64"}) == pa.schema([("n", pa.int64())])


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([], pa.null()),
        ([None], pa.null()),
        ([True, None], pa.bool_()),
        ([1, 2], pa.int64()),
        ([1, 2**63], pa.string()),
        ([1, 1.5], pa.float64()),
        ([2**53 + 1, 1.5], pa.string()),
        ([1, Decimal("1.5")], pa.float64()),
        ([Decimal("1e400")], pa.string()),
        (["a", 1], pa.string()),
        ([True, 1], pa.string()),
        ([[1], 1], pa.string()),
        ([[], [None]], pa.list_(pa.null())),
        ([[1], [2.5]], pa.list_(pa.float64())),
        ([{"a": 1}, {"b": [{"c": None}]}], pa.struct([("a", pa.int64()), ("b", pa.list_(pa.struct([("c", pa.null())])))])),
        ([{}], pa.string()),
        ([{"\ud800": 1}], pa.string()),
        ([{"A": 1}, {"a": 2}], pa.string()),
        ([{str(number): 1 for number in range(65)}], pa.string()),
    ],
)
def test_the_inferred_type_holds_all_json_values(values, type_):
    assert infer_type(values) == type_


def test_deeply_nested_json_is_kept_as_text():
    value = []
    for _ in range(500):
        value = [value]
    type_ = infer_type([value])
    for _ in range(8):
        type_ = type_.value_type
    assert type_ == pa.string()


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_a_broken_shard_is_skipped_for_the_run_to_report(write_shard, tmp_path, inspect, name):
    (tmp_path / name).write_bytes(b"\x1f\x8bnot really")
    write_shard([{"text": "some words", "year": "1999"}], name.replace("a.", "b."))
    assert inspect(metadata_columns=["year"]).names == ["year"]


def test_a_format_without_a_readable_shard_is_left_to_the_run_if_another_format_has_one(write_file, write_shard, inspect):
    write_file("a.parquet", b"not parquet at all")
    write_shard([{"text": "some words", "year": 1999}], "b.jsonl")
    assert inspect(metadata_columns=["year"]) == pa.schema([("year", pa.int64())])
