import pyarrow as pa
import pytest

from embedder.core.errors import ConfigError
from embedder.source.metadata_types import find_refused, is_id, is_text, name_refused, parse_type, to_delta_type, unify_types

UTC = pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("type_", "kept"),
    [
        (pa.int64(), pa.int64()),
        (pa.bool_(), pa.bool_()),
        (pa.decimal128(10, 2), pa.decimal128(10, 2)),
        (pa.null(), pa.string()),
        (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
        (pa.large_binary(), pa.binary()),
        (pa.binary(16), pa.binary()),
        (pa.uuid(), pa.string()),
        (pa.json_(), pa.string()),
        (pa.bool8(), pa.bool_()),
        (pa.fixed_shape_tensor(pa.float32(), [2]), pa.list_(pa.float32())),
        (pa.decimal256(38, 2), pa.decimal128(38, 2)),
        (pa.uint8(), pa.int16()),
        (pa.uint16(), pa.int32()),
        (pa.uint32(), pa.int64()),
        (pa.uint64(), pa.decimal128(20, 0)),
        (pa.float16(), pa.float32()),
        (pa.timestamp("s"), UTC),
        (pa.timestamp("ns", "Europe/Berlin"), UTC),
        (pa.date64(), pa.date32()),
        (pa.list_(pa.uint8(), 4), pa.list_(pa.int16())),
        (pa.large_list(pa.null()), pa.list_(pa.string())),
        (pa.list_view(pa.int8()), pa.list_(pa.int8())),
        (pa.struct([("a", pa.list_(pa.struct([("b", pa.uint8())])))]), pa.struct([("a", pa.list_(pa.struct([("b", pa.int16())])))])),
        (pa.map_(pa.large_string(), pa.timestamp("ms")), pa.map_(pa.string(), UTC)),
    ],
)
def test_types_become_types_of_a_delta_table(type_, kept):
    assert to_delta_type(type_) == kept
    assert to_delta_type(kept) == kept


@pytest.mark.parametrize(
    "type_",
    [
        pa.time32("s"),
        pa.duration("s"),
        pa.month_day_nano_interval(),
        pa.decimal256(50, 2),
        pa.decimal128(5, -2),
        name_refused("INTERVAL"),
        pa.list_(name_refused("VARIANT")),
        pa.list_(pa.time64("us")),
        pa.struct([]),
        pa.struct([("A", pa.int8()), ("a", pa.int8())]),
    ],
)
def test_types_without_a_counterpart_are_refused(type_):
    with pytest.raises(ConfigError, match=r"Delta table"):
        to_delta_type(type_)


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("string", pa.string()),
        ("Double", pa.float64()),
        ("timestamp", UTC),
        ("list<string>", pa.list_(pa.string())),
        ("list< list<int32> >", pa.list_(pa.list_(pa.int32()))),
    ],
)
def test_type_names_are_parsed(name, type_):
    assert parse_type(name) == type_


@pytest.mark.parametrize("name", ["int", "varchar", "list<>", "list<int>", "struct<a: int64>", ""])
def test_unknown_type_names_are_refused_with_the_allowed_ones(name):
    with pytest.raises(ConfigError, match=r"is not a type; choose string, bool, .*list<…>"):
        parse_type(name)


def test_types_of_text_and_of_ids():
    assert is_text(pa.null())
    assert not is_text(pa.binary())
    assert is_text(pa.json_())
    assert is_id(pa.decimal128(20, 0))
    assert is_id(pa.uuid())
    assert not any(is_id(type_) for type_ in (pa.bool_(), pa.list_(pa.string()), pa.decimal128(20, 2), pa.timestamp("s")))


def test_a_refused_type_is_named_at_any_level():
    assert find_refused(pa.list_(pa.struct([("a", pa.int8()), ("b", name_refused("INTERVAL"))]))) == "parquet's INTERVAL"
    assert find_refused(pa.map_(pa.string(), pa.uuid())) is None


def struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct(list(fields.items()))


@pytest.mark.parametrize(
    ("types", "unified"),
    [
        ([], pa.string()),
        ([pa.null()], pa.string()),
        ([pa.null(), pa.list_(pa.int8())], pa.list_(pa.int8())),
        ([pa.list_(pa.null()), pa.large_list(pa.int64())], pa.list_(pa.int64())),
        ([pa.int32(), pa.int64()], pa.int64()),
        ([pa.int64(), pa.float32()], pa.float64()),
        ([pa.uint64(), pa.int64()], pa.decimal128(20, 0)),
        ([pa.date32(), pa.timestamp("ns")], UTC),
        ([pa.int64(), pa.large_string()], pa.string()),
        ([pa.bool_(), pa.int64()], pa.string()),
        (
            [struct(x=pa.int8(), z=pa.null()), struct(x=pa.int64(), y=pa.string()), struct(z=pa.list_(pa.date32()))],
            struct(x=pa.int64(), z=pa.list_(pa.date32()), y=pa.string()),
        ),
        ([pa.map_(pa.string(), pa.int8()), pa.map_(pa.string(), pa.float64())], pa.map_(pa.string(), pa.float64())),
    ],
)
def test_one_type_holds_the_values_of_several(types, unified):
    assert unify_types(types) == unified


@pytest.mark.parametrize(
    "types",
    [
        [pa.int64(), pa.list_(pa.int64())],
        [struct(x=pa.int64()), struct(x=pa.list_(pa.int64()))],
        [struct(x=pa.int64()), struct(X=pa.int64())],
        [UTC, pa.string()],
        [pa.decimal128(38, 10), pa.decimal128(38, 2)],
    ],
)
def test_types_without_a_common_type_are_refused(types):
    with pytest.raises(ConfigError):
        unify_types(types)
