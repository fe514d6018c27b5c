from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from embedder.source.metadata_values import build_column, cast_column

TIMESTAMP = pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("type_", "values", "kept"),
    [
        (pa.string(), ["a", 1, True, {"b": [1]}, None], ["a", "1", "true", '{"b": [1]}', None]),
        (pa.int64(), [1, "2", 3.0], [1, 2, 3]),
        (pa.float64(), [1, "2.5", 2**60 + 1], [1.0, 2.5, float(2**60)]),
        (pa.bool_(), [True, "false", "TRUE", "0"], [True, False, True, False]),
        (
            TIMESTAMP,
            ["2024-01-31T10:00:00+02:00", "2024-01-31 10:00"],
            [datetime(2024, 1, 31, 8, tzinfo=UTC), datetime(2024, 1, 31, 10, tzinfo=UTC)],
        ),
        (pa.date32(), ["2024-01-31"], [date(2024, 1, 31)]),
        (pa.decimal128(10, 2), [1, "2.5"], [Decimal("1.00"), Decimal("2.50")]),
        (pa.binary(), ["ä"], ["ä".encode()]),
        (pa.list_(pa.string()), [["a", 1, None], []], [["a", "1", None], []]),
        (pa.map_(pa.string(), pa.int64()), [{"a": 1}], [[("a", 1)]]),
        (pa.struct([("a", pa.int64()), ("b", pa.string())]), [{"a": 1}, None], [{"a": 1, "b": None}, None]),
    ],
)
def test_python_values_become_their_column(type_, values, kept):
    assert build_column(values, type_, pytest.fail).to_pylist() == kept


def test_a_value_that_does_not_fit_is_null_and_reported():
    refused = []
    column = build_column([1, "x", 2**70, 4], pa.int64(), lambda position, value: refused.append((position, value)))
    assert column.to_pylist() == [1, None, None, 4]
    assert refused == [(1, "x"), (2, 2**70)]


def test_an_arrow_column_is_cast_by_value_if_one_does_not_fit():
    refused = []
    column = cast_column(pa.array([1, 300, None, -5]), pa.int8(), lambda position, value: refused.append((position, value)))
    assert column.to_pylist() == [1, None, None, -5]
    assert refused == [(1, 300)]


def test_only_times_finer_than_a_microsecond_are_truncated():
    assert cast_column(pa.array([1_999], pa.timestamp("ns")), TIMESTAMP, pytest.fail).cast(pa.int64()).to_pylist() == [1]
    refused = []
    cast_column(pa.array([1.5]), pa.int64(), lambda position, value: refused.append(value))
    assert refused == [1.5]


X = pa.struct([("x", pa.int64())])
XY = pa.struct([("x", pa.int64()), ("y", pa.int64())])


@pytest.mark.parametrize(
    ("values", "type_", "target"),
    [
        ([datetime(2024, 1, 1), None, datetime(2024, 1, 1, 5)], pa.timestamp("us"), pa.date32()),
        ([{"x": 1, "y": None}, None, {"x": 1, "y": 2}], XY, X),
        ([[], [{"x": 1, "y": None}], [None, {"y": 2}]], pa.list_(XY), pa.list_(X)),
        ([[], [{"x": 1, "y": None}], [None, {"y": 2}]], pa.list_view(XY), pa.list_(X)),
        ([[("k", {"x": 1})], None, [("k", {"y": 2})]], pa.map_(pa.string(), XY), pa.map_(pa.string(), X)),
        (
            [{"x": datetime(2024, 1, 1)}, None, {"x": datetime(2024, 1, 1, 5)}],
            pa.struct([("x", TIMESTAMP)]),
            pa.struct([("x", pa.date32())]),
        ),
        ([0, 1, 2], pa.int64(), pa.bool_()),
        ([0.5, 1.0, 0.375], pa.float64(), pa.decimal128(10, 2)),
        ([Decimal(2**53), None, Decimal(2**53 + 1)], pa.decimal128(20, 0), pa.float64()),
        ([1, None, 2**53 + 1], pa.int64(), pa.float64()),
        ([1.0, None, float("nan")], pa.float64(), pa.int64()),
    ],
)
def test_a_value_that_would_lose_a_part_is_refused_and_its_neighbors_are_kept(values, type_, target):
    refused = []
    column = cast_column(pa.array(values, type_), target, lambda position, value: refused.append(position))
    assert (refused, len(column), column.null_count) == ([2], 3, 2 if values[1] is None else 1)
    assert column.type == target


@pytest.mark.parametrize("view", [pa.list_view(pa.int8()), pa.large_list_view(pa.int8())])
def test_list_views_become_lists(view):
    column = cast_column(pa.array([[1, 2], None, [], [3]], view), pa.list_(pa.int8()), pytest.fail)
    column.validate(full=True)
    assert column.to_pylist() == [[1, 2], None, [], [3]]
