import sys
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, SourceError
from embedder.source.formats import duckdb as duckdb_format
from embedder.source.sampling import sample_documents
from embedder.source.shards import list_shards

LARGE = "CREATE TABLE docs AS SELECT n, printf('%0500d', n) AS text FROM range(20_000) AS r(n)"


@pytest.fixture
def make(tmp_path):
    def make_database(script: str, name: str = "a.duckdb") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with duckdb.connect(str(path)) as connection:
            connection.execute(script)
        return path

    return make_database


def test_each_type_is_exact(make, read):
    path = make("""CREATE TYPE mood AS ENUM ('calm', 'wild'); CREATE TABLE docs AS SELECT 'a' AS text, true AS flag, 200::UTINYINT AS n,
    18446744073709551615::UBIGINT AS big, 0.1::DOUBLE AS x, 1.50::DECIMAL(38, 2) AS price, '\\xFF'::BLOB AS raw, DATE '3000-01-01' AS day,
    TIMESTAMP '2026-01-01 12:00:00.000001' AS moment, TIMESTAMPTZ '2026-01-01 12:00:00+02' AS zoned, 'wild'::mood AS mood,
    '67e55044-10b1-426f-9247-bb680e5fe0c8'::UUID AS uid, '{"a": 1}'::JSON AS doc, ['x', NULL] AS tags, {'n': 1, 's': 'x'} AS meta""")
    values = {
        "flag": True,
        "n": 200,
        "big": Decimal(2**64 - 1),
        "x": 0.1,
        "price": Decimal("1.50"),
        "raw": b"\xff",
        "day": date(3000, 1, 1),
        "moment": datetime(2026, 1, 1, 12, 0, 0, 1, UTC),
        "zoned": datetime(2026, 1, 1, 10, tzinfo=UTC),
        "mood": "wild",
        "uid": "67e55044-10b1-426f-9247-bb680e5fe0c8",
        "doc": '{"a": 1}',
        "tags": ["x", None],
        "meta": {"n": 1, "s": "x"},
    }
    got = read(path, metadata_columns=[*values, "meta.s"]).documents
    assert got.select([*values, "meta_s"]).to_pylist() == [values | {"meta_s": "x"}]
    assert read(path, id_column="uid").documents["doc_id"].to_pylist() == [str(uuid.UUID(values["uid"]))]


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        ("HUGEINT", "DuckDB's hugeint"),
        ("TIMETZ", "DuckDB's time_tz"),
        ("BIT", "DuckDB's bit"),
        ("VARIANT", "DuckDB's variant"),
        ("INTERVAL", "month_day_nano_interval"),
        ("UNION(n INTEGER, s VARCHAR)", "union"),
    ],
)
def test_a_type_that_arrow_lacks_is_refused_by_name_only_if_its_column_is_read(make, read, type_, name):
    path = make(f"CREATE TABLE docs (text VARCHAR, odd {type_}); INSERT INTO docs VALUES ('a', NULL)")
    assert read(path).texts == ["a"]
    with pytest.raises(ConfigError, match=name):
        read(path, metadata_columns=["odd"])


def test_infinite_dates_are_quarantined(make, read):
    path = make("CREATE TABLE docs AS SELECT 'a' AS text, DATE 'infinity' AS d, TIMESTAMPTZ '-infinity' AS t")
    assert read(path, metadata_columns=["d"]).reasons == read(path, metadata_columns=["t"]).reasons == [(0, "metadata_type")]


def test_rows_are_in_order_of_insertion_through_deletes(make, read):
    path = make(f"{LARGE}; DELETE FROM docs WHERE n % 3 = 0; INSERT INTO docs VALUES (-1, 'last')")
    got = read(path, metadata_columns=["n"]).documents
    assert got["n"].to_pylist() == [*(n for n in range(20_000) if n % 3), -1]
    assert got["row"].to_pylist() == list(range(len(got)))


def test_a_table_is_named_only_if_there_are_several_and_a_view_needs_its_key(make, read):
    path = make("""CREATE TABLE docs AS SELECT n AS k, 'text ' || n AS text, 1 AS one FROM range(3) AS r(n);
    CREATE VIEW reversed AS SELECT -k AS k, text, one FROM docs""")
    assert read(path).texts == ["text 0", "text 1", "text 2"]
    assert read(path, table="reversed", key_column="k").texts == ["text 2", "text 1", "text 0"]
    with pytest.raises(ConfigError, match=r"the rows of view 'reversed' have no order; set source.key_column"):
        read(path, table="reversed")
    with pytest.raises(SourceError, match=r"2 of 3 rows have no 'one', or that of another row"):
        read(path, table="docs", key_column="one")
    make('CREATE SCHEMA other; CREATE TABLE other."a b" (text VARCHAR); INSERT INTO other."a b" VALUES (\'x\')')
    with pytest.raises(ConfigError, match=r"several tables \(found: docs, reversed, other.a b\); set source.table"):
        read(path)
    assert read(path, table="other.a b").texts == ["x"]


def test_a_view_of_other_files_is_refused(make, read, tmp_path):
    (tmp_path / "b.csv").write_text("k,text\n1,secret\n")
    path = make(f"CREATE VIEW docs AS FROM '{tmp_path}/b.csv'")
    (tmp_path / "b.csv").unlink()
    with pytest.raises(SourceError, match=r"a.duckdb: cannot be read to its end .*disabled by configuration"):
        read(path, table="docs", key_column="k")


@pytest.mark.parametrize("script", ["CREATE TABLE docs AS SELECT 'old' AS text", LARGE], ids=["small", "large"])
def test_commits_in_a_log_beside_the_file_are_never_left_out_silently(make, read, script, tmp_path):
    path = make(script)
    before = list_shards(SourceConfig(uri=str(path))).shards[0]
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    with duckdb.connect(str(path)) as writer:
        writer.execute("INSERT INTO docs (text) VALUES ('newer')")
        with pytest.raises(SourceError, match=r"commits that it lacks are in .*a.duckdb.wal"):
            read(path)
        for end in ("", ".wal"):
            copy.with_name(copy.name + end).write_bytes(path.with_name(path.name + end).read_bytes())
    assert copy.stat().st_size == before.size_bytes
    with pytest.raises(SourceError, match=r"commits that it lacks are in .*a.duckdb.wal"):
        read(copy.parent)
    assert read(path).texts[-1] == "newer"


def test_a_flipped_bit_is_found_by_the_checksum_of_its_block(make, read):
    path = make(f"SET force_compression = 'uncompressed'; {LARGE}")
    data = bytearray(path.read_bytes())
    data[data.index(b"0" * 400)] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"cannot be read to its end .*checksum"):
        read(path)


def test_a_sample_of_a_large_file_estimates_its_documents(make):
    path = make(LARGE)
    source = SourceConfig(uri=str(path))
    sample = sample_documents(source, list_shards(source), 10, 0)
    assert sample.estimate_documents(path.stat().st_size) == pytest.approx(20_000, rel=0.1)


def test_too_little_memory_is_a_source_error_that_names_it(make, read, monkeypatch):
    monkeypatch.setitem(duckdb_format._CONFIG, "memory_limit", "1MiB")
    with pytest.raises(SourceError, match=r"OutOfMemoryException: .*failed to"):
        read(make(LARGE))


def test_without_its_package_the_extra_is_named(make, read, monkeypatch):
    path = make("CREATE TABLE docs AS SELECT 'a' AS text")
    monkeypatch.delitem(sys.modules, "embedder.source.formats.duckdb", raising=False)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match=r"the format duckdb needs the package 'duckdb', .*pip install '.\[duckdb\]' from the checkout"):
        read(path, pa.schema([]))
