"""A filter is parsed as in SQL, checked against the columns, and nulls pass only `is null`."""

from datetime import UTC, date, datetime

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.core.errors import ConfigError
from embedder.source.filter import Compare, Filter, Group, Has, IsNull, OneOf, negate, parse_filter, passes
from embedder.stores.filter_sql import Dialect, render_sql

SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("year", pa.int64()),
        ("weight", pa.float32()),
        ("good", pa.bool_()),
        ("seen", pa.timestamp("us", "UTC")),
        ("day", pa.date32()),
        ("tags", pa.list_(pa.string())),
        ("counts", pa.list_(pa.uint8())),
        ("odd name", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
DUCKDB = Dialect('"', "TIMESTAMPTZ '{}'", "list_contains({column}, {value})")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("topic = 'it''s'", Compare("topic", "=", "it's")),
        ("year >= -3", Compare("year", ">=", -3)),
        ("year < 2.5", Compare("year", "<", 2.5)),
        ("year in (2e3, 2001.5)", OneOf("year", (2000, 2001.5))),
        ("year <= 9223372036854775807", Compare("year", "<=", 2**63 - 1)),
        ("weight <> 1e3", Compare("weight", "!=", 1000.0)),
        ("good == TRUE", Compare("good", "=", True)),
        ("seen > '2020-01-02'", Compare("seen", ">", datetime(2020, 1, 2, tzinfo=UTC))),
        ("day <= '2020-01-02'", Compare("day", "<=", date(2020, 1, 2))),
        ("topic IN ('a', 'b')", OneOf("topic", ("a", "b"))),
        ("topic not in ('a')", OneOf("topic", ("a",), True)),
        ("tags has 'x'", Has("tags", "x")),
        ('"odd name" is not null', IsNull("odd name", True)),
        ("not (topic is null or year = 1)", Group("and", (IsNull("topic", True), Compare("year", "!=", 1)))),
        (
            "good = true or year = 1 and not tags has 'x'",
            Group("or", (Compare("good", "=", True), Group("and", (Compare("year", "=", 1), Has("tags", "x", True))))),
        ),
    ],
)
def test_values_are_parsed_in_the_types_of_the_columns(text: str, expected: Filter) -> None:
    assert parse_filter(text, SCHEMA) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toppic = 'x'", "no column 'toppic'; there are topic, year, weight, good, seen, day, tags, counts, odd name"),
        ("embedding is null", "no column 'embedding'"),
        ("year = 'x'", "'x' is not a value of column year, which is int64"),
        ("year > 9223372036854775808", "9223372036854775808 is not a value of column year, which is int64"),
        ("year < 1e30 or topic = 'x'", "1e30 is not a value of column year, which is int64"),
        ("counts has 256", "256 is not a value of column counts, which is list<item: uint8>"),
        ("not counts has -1", "-1 is not a value of column counts"),
        ("topic = 3", "3 is not a value of column topic, which is string"),
        ("seen > 'yesterday'", "'yesterday' is not a value of column seen"),
        ("seen > '2024-01-31T10:00:00.1234567'", "'2024-01-31T10:00:00.1234567' is not a value of column seen"),
        ("seen > '0001-01-01T00:00+01:00'", "'0001-01-01T00:00+01:00' is not a value of column seen"),
        ("weight < 1e400", "1e400 is not a value of column weight, which is float"),
        ("tags = 'x'", "tags is list<item: string>; ask it with tags has 'x'"),
        ("topic has 'x'", "topic is string; has is for lists"),
        ("year >", "a value expected, found its end"),
        ("year 3", "a comparison, in, is null or has expected, found '3' (character 6)"),
        ("(year = 3", "')' expected, found its end"),
        ("year = 3 topic = 'x'", "and, or, or the end expected, found 'topic' (character 10)"),
        ("topic = 'x", 'cannot read it from "\'x" on'),
        ("", "a column expected"),
    ],
)
def test_a_wrong_filter_is_refused_with_the_valid_choices(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_filter(text, SCHEMA)
    assert message in str(caught.value)


ROWS = pa.RecordBatch.from_pylist(
    [
        {"topic": topic, "year": year, "weight": weight, "good": good, "seen": seen, "day": None, "tags": tags, "odd name": "x"}
        for topic, year, weight, good, seen, tags in [
            ("x", 1, 0.5, True, datetime(2020, 1, 1, tzinfo=UTC), ["a", "b"]),
            ("y", None, None, None, None, None),
            (None, 2, -1.0, False, datetime(2021, 1, 1, tzinfo=UTC), []),
            ("it's", 3, 7.0, True, None, ["a", None]),
            ("x", 3, 0.0, None, datetime(2020, 6, 1, tzinfo=UTC), ["c"]),
        ]
    ],
    SCHEMA.remove(SCHEMA.get_field_index("embedding")),
)

CONNECTION = duckdb.connect()

values = {"topic": st.sampled_from(["x", "it's", "z"]), "year": st.sampled_from([1, 2, 2.5]), "weight": st.sampled_from([0.5, -1.0])}
operators = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
tests = st.one_of(
    *[st.builds(Compare, st.just(name), operators, each) for name, each in values.items()],
    st.builds(Compare, st.just("good"), st.sampled_from(["=", "!="]), st.booleans()),
    st.builds(Compare, st.just("seen"), operators, st.just(datetime(2020, 6, 1, tzinfo=UTC))),
    st.builds(OneOf, st.just("year"), st.lists(st.sampled_from([1, 2.5, 3]), min_size=1).map(tuple), st.booleans()),
    st.builds(IsNull, st.sampled_from(["topic", "tags", "seen"]), st.booleans()),
    st.builds(Has, st.just("tags"), st.sampled_from(["a", "c", "d"]), st.booleans()),
)
filters: st.SearchStrategy[Filter] = st.recursive(
    tests, lambda inner: st.builds(Group, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)), max_leaves=6
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(where=filters)
def test_pyarrow_and_sql_agree_on_every_row_and_negation_passes_no_row_twice(where: Filter) -> None:
    connection = CONNECTION
    connection.register("rows", pa.Table.from_batches([ROWS]).append_column("place", pa.array(range(ROWS.num_rows))))
    for each in (where, negate(where)):
        found = connection.execute(f"SELECT place FROM rows WHERE {render_sql(each, DUCKDB)} ORDER BY place").fetchall()
        assert [place for (place,) in found] == passes(each, ROWS).nonzero()[0].tolist(), render_sql(each, DUCKDB)
    assert not (passes(where, ROWS) & passes(negate(where), ROWS)).any()
