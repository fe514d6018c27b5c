from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.source.metadata_casts import cast_column
from embedder.source.metadata_values import build_column, cast_texts, converter

TIMESTAMP = pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("type_", "values", "kept"),
    [
        (pa.string(), ["a", 1, True, {"b": [1]}, None], ["a", "1", "true", '{"b": [1]}', None]),
        (pa.int64(), [1, "2", 3.0], [1, 2, 3]),
        (pa.float64(), [1, "2.5", 2**60], [1.0, 2.5, float(2**60)]),
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


NUMBERS = st.from_regex(r"[+-]?0{0,2}[0-9]{0,19}(\.[0-9]{0,19})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
TIMES = st.from_regex(
    r"[0-2][09][0-9]{2}-[01][0-9]-[0-3][0-9]([T ][0-2][0-9]:[0-6][0-9](:[0-6][0-9](\.[0-9]{0,9})?)?(Z|[+-][0-2][0-9](:?[0-6][0-9])?)?)?"
)


@settings(deadline=None)
@given(st.lists(st.none() | NUMBERS | TIMES | st.datetimes().map(str) | st.integers().map(str), max_size=2))
def test_texts_that_are_cast_as_a_column_give_the_values_of_each_text(values):
    for type_ in (pa.int64(), pa.float64(), pa.date32(), TIMESTAMP):
        found = cast_texts(pa.array(values, pa.string()), type_)
        if found is not None:
            assert repr(found.to_pylist()) == repr(pa.array(map(converter(type_), values), type_).to_pylist())


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.int64(), ["12", "-7", None]),
        (pa.float64(), ["0.5", "-12.25", "0", "300"]),
        (pa.date32(), ["2026-01-31"]),
        (TIMESTAMP, ["2026-01-31T10:00:00+02:00", "2026-01-31 10:00:00.5Z"]),
        (TIMESTAMP, ["2026-01-31T10:00:00"]),
    ],
)
def test_plain_texts_are_cast_as_a_column(type_, values):
    found = cast_texts(pa.array(values, pa.string()), type_)
    assert found is not None
    assert found.type == type_
    assert found.to_pylist() == [converter(type_)(value) for value in values]


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


NO_NUMBERS = [
    "1_000",
    "٣",
    "0x10",
    "1 0",
    "",
    ".",
    "1e",
    "--1",
    "nan",
    "NaN",
    "inf",
    "Infinity",
    "1\u00a0",
    True,
    [1],
    float("nan"),
    float("inf"),
]
HUGE = [10**400, "1e400", "1e99999999999999999999", Decimal("1e400"), "9" * 5000]


@pytest.mark.parametrize(
    ("type_", "kept", "refused"),
    [
        (
            pa.int64(),
            {"+1": 1, " 12\t": 12, "007": 7, "1.": 1, "1.0": 1, "1e3": 1000, "-9223372036854775808": -(2**63), 2.0: 2, Decimal("5.0"): 5},
            [*NO_NUMBERS, *HUGE, "1.5", "9223372036854775808", 0.5, 1e17, Decimal("9007199254740993.5")],
        ),
        (
            pa.float64(),
            {
                "+1": 1.0,
                ".5": 0.5,
                "1.": 1.0,
                "1e3": 1000.0,
                "0.1": 0.1,
                "-0.0": -0.0,
                "5e-324": 5e-324,
                2**60: 2.0**60,
                Decimal("0.1"): 0.1,
            },
            [*NO_NUMBERS, *HUGE, 2**53 + 1, "9007199254740993", "1e-400", Decimal("1e-400")],
        ),
        (pa.float32(), {"0.1": 0.10000000149011612, 2**24: 2.0**24}, [*NO_NUMBERS, *HUGE, 2**24 + 1, 1e39, "1e-60"]),
        (
            pa.decimal128(10, 2),
            {"1.50": Decimal("1.50"), 0.1: Decimal("0.10"), 2**26: Decimal("67108864.00")},
            [*NO_NUMBERS, *HUGE, "1.555", 10**9, 0.001, Decimal("1.555")],
        ),
        (pa.bool_(), {"true": True, " FALSE ": False, "1": True}, ["yes", "t", "", "01", 2, 1.0]),
        (
            TIMESTAMP,
            {
                "0001-01-01": datetime(1, 1, 1, tzinfo=UTC),
                "9999-12-31T23:59:59.999999Z": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
                "2024-01-31 10:00:00.1234560": datetime(2024, 1, 31, 10, 0, 0, 123_456, tzinfo=UTC),
            },
            [
                "2024-01-31T10:00:00.1234567",
                "0001-01-01T00:00+01:00",
                "9999-12-31T23:59-01:00",
                "2024-01-31x10:00",
                "٢٠٢٤-01-31",
                "2024",
                1,
            ],
        ),
        (pa.date32(), {"9999-12-31": date(9999, 12, 31)}, ["2024-01-31T00:00", "31.1.2024", "10000-01-01", 19_000, 1.5]),
        (pa.string(), {Decimal("1.10"): "1.10", 2**70: str(2**70), 1.5: "1.5"}, ["\ud800"]),
    ],
    ids=str,
)
def test_a_value_is_kept_exactly_or_refused(type_, kept, refused):
    # as text: True equals 1, and -0.0 equals 0.0
    assert list(map(str, build_column(list(kept), type_, pytest.fail).to_pylist())) == list(map(str, kept.values()))
    found = []
    column = build_column([*refused, None, next(iter(kept))], type_, lambda position, value: found.append(position))
    assert found == list(range(len(refused)))
    assert column.null_count == len(refused) + 1


def test_json_text_keeps_the_digits_of_a_decimal():
    assert build_column([{"a": [Decimal("1.10"), None, 'ä"']}], pa.string(), pytest.fail).to_pylist() == ['{"a": [1.10, null, "ä\\""]}']


TEXTS = ["1", "0x10", "nan", "1e400", " 2", "1_0", b"\xff", None]


@pytest.mark.parametrize("type_", [pa.int64(), pa.float64()])
def test_text_in_a_typed_column_is_read_as_in_json(type_):
    texts = pa.array([each if isinstance(each, bytes | None) else each.encode() for each in TEXTS])
    column = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers(), null_count=1)
    nested = pa.StructArray.from_arrays([column], ["a"])
    refused = []
    flat = cast_column(column, type_, lambda position, value: refused.append(position))
    struct = cast_column(nested, pa.struct([("a", type_)]), lambda position, value: refused.append(position))
    assert refused == [1, 2, 3, 5, 6] * 2
    assert flat.take([0, 4]).to_pylist() == [1, 2]
    assert struct.take([0, 4]).to_pylist() == [{"a": 1}, {"a": 2}]


def test_a_double_that_a_float32_cannot_hold_is_refused():
    refused = []
    column = cast_column(pa.array([0.1, 1e39, float("inf"), None]), pa.float32(), lambda position, value: refused.append(value))
    assert (refused, column.to_pylist()[2:]) == ([1e39], [float("inf"), None])


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
        ([0, None, 2**62], TIMESTAMP, pa.string()),
        ([0, None, 86_400_000_000], pa.time64("us"), pa.string()),
        ([1000, None, 1001], pa.timestamp("ns"), TIMESTAMP),
        ([[0], None, [2**62]], pa.list_(TIMESTAMP), pa.list_(TIMESTAMP)),
        ([0, None, 2**31 - 1], pa.date32(), pa.date32()),
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
