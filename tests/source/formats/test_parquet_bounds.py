"""Row groups whose statistics exclude the filter are not read, and the records are those of a file without statistics."""

import struct
from collections.abc import Collection
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.config.source import SourceConfig
from embedder.core.errors import SourceError
from embedder.core.units import Task
from embedder.source.documents import SourceUnit, read_units, slice_shard
from embedder.source.formats.parquet_bounds import Bounds, read_bounds
from embedder.source.selection import select_shards
from embedder.source.shards import list_shards

GROUP_ROWS = 5
NUM_ROWS = 40
NAN = float("nan")


def read(path: Path, condition: str, **settings: Any) -> list[SourceUnit]:
    source = SourceConfig.model_validate({"uri": str(path), "filter": condition, "rows_per_unit": 7, **settings})
    listing, metadata = select_shards(source, list_shards(source))
    return list(read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, metadata))


def bounds_of(path: Path, name: str, wanted: pa.DataType) -> list[Bounds | None]:
    with path.open("rb") as file:
        stored = pq.read_schema(path).field(name).type
        return [group.get(name) for group in read_bounds(file, {name: (stored, wanted)})]


def numbers(type_: pa.DataType) -> pa.Array:
    return pa.array([None if row % 13 == 4 else row for row in range(NUM_ROWS)], pa.int64()).cast(type_)


COLUMNS: dict[str, pa.Array] = {
    "int8": numbers(pa.int8()),
    "uint32": pa.array([(row << 28) % (1 << 32) for row in range(NUM_ROWS)], pa.uint32()),
    "double": pa.array([NAN if row % 5 == 3 else -0.0 if row == 10 else float(row // 5) for row in range(NUM_ROWS)]),
    "single": numbers(pa.float32()),
    "flag": pa.array([None if row > 34 else row > 11 for row in range(NUM_ROWS)]),
    "day": pa.array([date(2024, 1, 1 + row // 2) for row in range(NUM_ROWS)]),
    "moment": pa.array([datetime(2024, 1, 1 + row // 2, tzinfo=UTC) for row in range(NUM_ROWS)], pa.timestamp("ms", "UTC")),
    "local": pa.array([datetime(2024, 1, 1 + row // 2) for row in range(NUM_ROWS)], pa.timestamp("us")),
    "nanos": pa.array([datetime(2024, 1, 1 + row // 2) for row in range(NUM_ROWS)], pa.timestamp("ns")),
    "word": pa.array([f"{'ä' * (row // 10)}{row:02d}" for row in range(NUM_ROWS)]),
    "named": pa.array(["de", "en", None, "fr"] * 2 + ["en"] * 24 + [None] * 8).dictionary_encode(),
    "tags": pa.array([[f"t{row // 10}"] for row in range(NUM_ROWS)]),
    "empty": pa.nulls(NUM_ROWS, pa.string()),
}
CONDITIONS = [
    "int8 <= 3 or int8 = 17", "int8 is null", "not int8 in (1, 2)", "uint32 = 268435456",
    "double = 0", "double != 1", "not double in (1, 2)", "double < 0.5", "single < 1.5 and flag = false",
    "flag is null", "flag != true", "day < '2024-01-03'", "moment >= '2024-01-20T00:00:00Z'",
    "local >= '2024-01-20'", "nanos >= '2024-01-20'", "word > 'ää'", "word = 'ä13'", "word < 'a'",
    "named != 'en'", "tags has 't3'", "empty = 'x'", "empty is null",
    "int8 > 30 and (word < 'ä' or day > '2024-01-19')",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One table with statistics and one without."""
    rows = pa.table({"id": list(range(NUM_ROWS)), "text": [f"text {row}" for row in range(NUM_ROWS)], **COLUMNS})
    folder = tmp_path_factory.mktemp("bounds")
    for name, is_measured in (("with.parquet", True), ("without.parquet", False)):
        pq.write_table(rows, folder / name, row_group_size=GROUP_ROWS, write_statistics=is_measured)
    return folder / "with.parquet", folder / "without.parquet"


@pytest.mark.parametrize("condition", CONDITIONS)
def test_records_counts_and_units_are_those_of_a_file_without_statistics(condition: str, files: tuple[Path, Path]) -> None:
    pruned, read_all = (read(path, condition, metadata_columns=["int8"]) for path in files)
    assert [(unit.first_row, unit.stop_row, unit.last) for unit in pruned] == [
        (unit.first_row, unit.stop_row, unit.last) for unit in read_all
    ]
    for one, other in zip(pruned, read_all, strict=True):
        columns = ["row", "text", "int8", "content_hash"]
        assert one.documents.select(columns) == other.documents.select(columns)
        assert one.quarantined.num_rows == other.quarantined.num_rows == 0


def break_groups(path: Path, groups: Collection[int], broken: Path) -> Path:
    """Overwrite the texts of row groups."""
    metadata, data = pq.read_metadata(path), bytearray(path.read_bytes())
    for group in groups:
        columns = (metadata.row_group(group).column(each) for each in range(metadata.num_columns))
        column = next(each for each in columns if each.path_in_schema == "text")
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    broken.write_bytes(data)
    return broken


@pytest.mark.parametrize(
    ("condition", "read_groups"),
    [
        ("int8 > 30", {6, 7}), ("int8 = 17", {3}), ("int8 in (3, 39)", {0, 7}), ("int8 is null", {0, 3, 6}), ("flag is null", {7}),
        ("uint32 > 4000000000", {3, 6}), ("double > 6", {7}), ("word > 'ää'", {4, 5, 6, 7}), ("empty = 'x'", set()),
        ("flag = false", {0, 1, 2}), ("flag != true", {0, 1, 2}), ("named != 'en'", {0, 1}), ("empty is not null", set()),
        ("day < '2024-01-03' or moment > '2024-01-19T12:00:00Z'", {0, 7}), ("local < '2024-01-03' and int8 = 39", set()),
    ],
)  # fmt: skip
def test_only_row_groups_that_can_hold_a_wanted_record_are_read(
    condition: str, read_groups: set[int], files: tuple[Path, Path], tmp_path: Path
) -> None:
    read(break_groups(files[0], set(range(8)) - read_groups, tmp_path / "others.parquet"), condition)
    for group in sorted(read_groups)[:1]:
        with pytest.raises(SourceError, match="cannot be read to its end"):
            read(break_groups(files[0], {group}, tmp_path / "wanted.parquet"), condition)


@pytest.mark.parametrize("condition", ["double != 1", "tags has 't3'", "nanos > '2025-01-01'"])
def test_statistics_that_exclude_nothing_for_sure_are_not_believed(condition: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read to its end"):
        read(break_groups(files[0], {1}, tmp_path / "broken.parquet"), condition)


def test_a_slice_counts_the_rows_of_groups_that_are_not_read(files: tuple[Path, Path]) -> None:
    source = SourceConfig(uri=str(files[0]), filter="int8 > 30")
    listing, metadata = select_shards(source, list_shards(source))
    assert slice_shard(listing.shards[0], source) == [(0, 8, 0)]
    (unit,) = read_units(Task("0" * 16, "0" * 32, tuple(listing.shards), (5, 7), 25), source, metadata)
    assert (unit.first_row, unit.stop_row, unit.documents["row"].to_pylist()) == (25, 35, [31, 32, 33, 34])


def test_bounds_of_other_writers_are_those_of_the_values(tmp_path: Path) -> None:
    long = "x" * 300
    duckdb.execute(f"copy (select range as n, '{long}' || range as t from range(4096)) to '{tmp_path / 'd.parquet'}' (row_group_size 2048)")
    for found in bounds_of(tmp_path / "d.parquet", "n", pa.int64()):
        assert found is None or found.ends is None or found.ends.to_pylist()[0] % 2048 == 0
    rows = pq.read_table(tmp_path / "d.parquet")
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=2048)
    assert [found.ends.to_pylist() for found in bounds_of(tmp_path / "a.parquet", "n", pa.int64())] == [[0, 2047], [2048, 4095]]
    assert bounds_of(tmp_path / "a.parquet", "n", pa.int8())[0].ends is None
    assert bounds_of(tmp_path / "a.parquet", "n", pa.string())[0].ends is None


def test_a_damaged_footer_is_an_error_or_reads_as_without_statistics(files: tuple[Path, Path], tmp_path: Path) -> None:
    data = files[0].read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    draw = np.random.default_rng(0)
    for number in range(60):
        footer = bytearray(data[-8 - length : -8])
        footer[draw.integers(length)] = draw.integers(256)
        (tmp_path / f"{number}.parquet").write_bytes(data[: -8 - length] + footer + data[-8:])
        with (tmp_path / f"{number}.parquet").open("rb") as file:
            read_bounds(file, {name: (column.type, column.type) for name, column in COLUMNS.items()})


def test_a_bound_of_a_wrong_length_does_not_end_the_process(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1 << 40, (1 << 40) + 1]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    value = struct.pack("<q", 1 << 40)
    footer = data[-8 - length : -8].replace(b"\x08" + value, b"\x04" + value[:4])
    (tmp_path / "a.parquet").write_bytes(data[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1")
    with pytest.raises(SourceError, match="cannot be read to its end"):
        read(tmp_path / "a.parquet", "n > 0")
