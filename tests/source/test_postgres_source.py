"""A PostgreSQL table as a source, on a real server: its rows as psycopg reads them, a shard a range of keys."""

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, LiteralString

import psycopg
import pyarrow as pa
import pytest
from pydantic import ValidationError

from embedder.config.source import SourceConfig
from embedder.core import retry
from embedder.core.errors import ConfigError, EmptySourceError, SourceError, StorageError
from embedder.core.units import Task
from embedder.source import postgres_source
from embedder.source.columns import with_context
from embedder.source.documents import SourceUnit, read_units
from embedder.source.sampling import sample_documents
from embedder.source.selection import select_shards
from embedder.source.shards import list_shards

pytestmark = pytest.mark.real


class Database:
    """A schema of its own, in which a test makes the table t."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.connection = psycopg.connect(uri, autocommit=True)
        self.run("DROP SCHEMA IF EXISTS news CASCADE; CREATE SCHEMA news; SET search_path = news; SET TimeZone = 'Asia/Tokyo'")

    def run(self, statement: LiteralString) -> None:
        self.connection.execute(statement)

    def source(self, **settings: Any) -> SourceConfig:
        return SourceConfig.model_validate({"uri": self.uri, "table": "news.t", "id_column": "id", **settings})

    def versions(self, **settings: Any) -> dict[str, str]:
        return {shard.uri.rpartition("/")[2]: shard.version for shard in list_shards(self.source(**settings)).shards}

    def read(self, **settings: Any) -> list[SourceUnit]:
        source = self.source(**settings)
        listing, metadata = select_shards(source, list_shards(source))
        return list(read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, metadata))

    def rows(self, **settings: Any) -> list[dict[str, Any]]:
        units = self.read(**settings)
        assert not sum(unit.quarantined.num_rows for unit in units)
        rows: list[dict[str, Any]] = pa.concat_tables([unit.documents for unit in units]).to_pylist()
        return rows

    def refused(self, **settings: Any) -> str:
        source = self.source(**settings)
        with pytest.raises(ConfigError) as raised:
            select_shards(source, list_shards(source))
        return str(raised.value)


@pytest.fixture
def database(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database whose ranges have 20 rows on average."""
    monkeypatch.setattr(postgres_source, "ROWS_PER_SHARD", 20)
    found = Database(postgres)
    yield found
    found.connection.close()


def fill(database: Database, key: LiteralString = "bigint", value: LiteralString = "3 * i") -> None:
    database.run(f"CREATE TABLE t (id {key} PRIMARY KEY, body text, lang text, seen timestamptz DEFAULT now())")
    database.run(f"INSERT INTO t SELECT {value}, 'body ' || i, CASE WHEN i % 2 = 0 THEN 'de' ELSE 'en' END FROM generate_series(1, 200) i")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bigint", "3 * i"),
        ("bigint", "i::bigint * 40000000000000000"),
        ("uuid", "md5(i::text)::uuid"),
        ("text", "'é/ %#' || i"),
        ("smallint", "i - 100"),
    ],
)
def test_the_ranges_hold_every_row_once_in_order_whatever_the_keys(database: Database, key: LiteralString, value: LiteralString) -> None:
    fill(database, key, value)
    rows = database.rows(text_columns="body", metadata_columns=["lang"])
    wanted = database.connection.execute("SELECT id::text, body, lang FROM t ORDER BY t.id").fetchall()
    assert sorted((row["doc_id"], row["text"], row["lang"]) for row in rows) == sorted(wanted)
    places = {id_: place for place, (id_, *_) in enumerate(wanted)}
    assert all(places[a["doc_id"]] + 1 == places[b["doc_id"]] for a, b in pairwise(rows) if a["shard"] == b["shard"])
    listing = list_shards(database.source(text_columns="body"))
    assert 5 < len(listing.shards) < 20
    assert sum(shard.num_rows or 0 for shard in listing.shards) == 200
    assert f"/postgres/news.t, as of {datetime.now(UTC):%Y-%m-%d}" in listing.table
    assert sample_documents(database.source(text_columns="body"), listing, 50, 0).documents.num_rows == 50


def test_an_edit_an_insert_and_a_delete_each_change_one_range_and_name_no_other(database: Database) -> None:
    fill(database)
    settings: dict[str, Any] = {"text_columns": "body"}
    before = database.versions(**settings)
    for change in (
        "UPDATE t SET body = 'edited' WHERE id = 300",
        "INSERT INTO t VALUES (305, 'new')",
        "DELETE FROM t WHERE id = 303",
        "UPDATE t SET id = 307 WHERE id = 305",
    ):
        database.run(change)
        after = database.versions(**settings)
        assert (after.keys(), len(after.items() - before.items())) == (before.keys(), 1), change
        before = after
    database.run("UPDATE t SET lang = 'fr', seen = now() WHERE id = 300; ALTER TABLE t ADD other int DEFAULT 7")
    database.run("VACUUM FULL t")
    assert database.versions(**settings) == before


def test_a_column_of_a_template_is_read_and_its_edit_changes_its_range(database: Database) -> None:
    fill(database)
    source = with_context(database.source(text_columns="body"), "{lang|none}, {seen}: {chunk}")
    before, metadata = select_shards(source, list_shards(source))
    documents = pa.concat_tables([unit.documents for unit in read_units(Task("0" * 16, "0" * 32, before.shards), source, metadata)])
    rows = database.connection.execute("SELECT id::text, lang FROM t").fetchall()
    assert dict(zip(*(documents[name].to_pylist() for name in ("doc_id", "context:lang|")), strict=True)) == dict(rows)
    assert all(text.startswith("20") for text in documents["context:seen"].to_pylist())
    database.run("UPDATE t SET lang = 'fr' WHERE id = 300")
    assert len({shard.version for shard in list_shards(source).shards} - {shard.version for shard in before.shards}) == 1


def test_a_range_that_gains_its_first_key_is_split_and_no_other_changes(database: Database) -> None:
    fill(database)
    before = database.versions(text_columns="body")
    database.run("INSERT INTO t VALUES (302, 'its hash is a multiple of 20')")
    after = database.versions(text_columns="body")
    assert (after.keys() - before.keys(), len(after.items() - before.items())) == ({"from-302"}, 2)
    database.run("UPDATE t SET body = 'x'")
    assert not database.versions(text_columns="body").items() & after.items()


def test_with_a_watermark_its_changes_alone_count_and_the_newest_hides_no_other(database: Database) -> None:
    fill(database)
    settings: dict[str, Any] = {"text_columns": "body", "watermark_column": "seen"}
    database.run("UPDATE t SET seen = '2026-01-02' WHERE id = 300")
    before = database.versions(**settings)
    database.run("UPDATE t SET body = 'edited' WHERE id = 300")
    assert database.versions(**settings) == before
    database.run("UPDATE t SET seen = '2026-01-01' WHERE id = 303")
    assert len(database.versions(**settings).items() - before.items()) == 1


def test_values_of_every_type_are_exact(database: Database) -> None:
    database.run("CREATE TYPE mood AS ENUM ('gut', 'böse'); CREATE DOMAIN money_text AS varchar(9)")
    database.run("""CREATE TABLE t (id uuid PRIMARY KEY, text text, b bool, s int2, i int4, l int8, f float4, d float8, n numeric(38, 10),
        c char(2), m mood, w money_text, y bytea, day date, at timestamptz, plain timestamp, j json, jb jsonb, tags text[], nums int[])""")
    database.run("""INSERT INTO t VALUES
        ('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'x', true, -32768, 2147483647, -9223372036854775808, 'nan',
        0.1, 1234567890123456789012345678.0123456789, 'de', 'böse', 'w', '\\x00ff', '0001-01-01', '9999-12-31 23:59:59.999999+00',
        '2024-02-29 12:00:00.5', '{"a": 1.0}', '{"b":2}', '{a,NULL,"b c"}', '{1,NULL}')""")
    names = ["b", "s", "i", "l", "f", "d", "n", "c", "m", "w", "y", "day", "at", "plain", "j", "jb", "tags", "nums"]
    (row,) = database.rows(metadata_columns=names)
    settings = "&options=-c%20TimeZone%3DAsia/Tokyo%20-c%20DateStyle%3DGerman%20-c%20extra_float_digits%3D0%20-c%20bytea_output%3Descape"
    assert database.versions(metadata_columns=names) == database.versions(metadata_columns=names, uri=database.uri + settings)
    assert row["doc_id"] == "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
    assert math.isnan(row["f"])
    assert {name: row[name] for name in names if name != "f"} == {
        "b": True,
        "s": -32768,
        "i": 2147483647,
        "l": -(1 << 63),
        "d": 0.1,
        "n": Decimal("1234567890123456789012345678.0123456789"),
        "c": "de",
        "m": "böse",
        "w": "w",
        "y": b"\0\xff",
        "day": date(1, 1, 1),
        "at": datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
        "plain": datetime(2024, 2, 29, 12, 0, 0, 500000, UTC),
        "j": '{"a": 1.0}',
        "jb": '{"b": 2}',
        "tags": ["a", None, "b c"],
        "nums": [1, None],
    }


def test_a_record_without_text_or_with_a_value_that_no_column_holds_is_quarantined(database: Database) -> None:
    database.run("CREATE TABLE t (id int PRIMARY KEY, text text, day date, at timestamp, n numeric(5, 2), tags text[])")
    database.run("""INSERT INTO t (id, text) VALUES (1, NULL), (2, E' \\n'), (8, repeat('ü', 600)), (9, 'good');
        INSERT INTO t (id, text, day) VALUES (3, 'x', 'infinity'), (4, 'x', '0044-03-15 BC');
        INSERT INTO t (id, text, at) VALUES (5, 'x', '-infinity');
        INSERT INTO t (id, text, n, tags) VALUES (6, 'x', 'NaN', NULL), (7, 'x', NULL, '{{a,b},{c,d}}')""")
    units = database.read(metadata_columns=["day", "at", "n", "tags"], max_record_bytes=1000)
    assert [each for unit in units for each in unit.documents["doc_id"].to_pylist()] == ["9"]
    quarantined = pa.concat_tables([unit.quarantined for unit in units]).to_pylist()
    assert {row["doc_id"]: row["reason"] for row in quarantined} == {
        "1": "null_text",
        "2": "empty_text",
        **dict.fromkeys("34567", "metadata_type"),
        "8": "too_large",
    }
    assert 'tags=[["a", "b"], ["c", "d"]] is not list' in str(quarantined)


def test_a_filter_decides_by_the_records(database: Database) -> None:
    fill(database)
    rows = database.rows(text_columns="body", filter="lang = 'de' and id > 300")
    assert sorted(int(row["doc_id"]) for row in rows) == list(range(306, 601, 6))


@pytest.mark.parametrize("change", ["UPDATE t SET body = 'now' WHERE id = 3", "DELETE FROM t", "INSERT INTO t VALUES (-1, 'first')"])
def test_a_range_that_changed_since_it_was_listed_is_not_read(database: Database, change: LiteralString) -> None:
    fill(database)
    source = database.source(text_columns="body")
    listing, metadata = select_shards(source, list_shards(source))
    database.run(change)
    start = next(shard for shard in listing.shards if shard.uri.endswith("/start"))
    with pytest.raises(SourceError, match=r"news.t/start: changed while it was read \(listed as version .*run again"):
        list(read_units(Task("0" * 16, "0" * 32, (start,)), source, metadata))


def test_a_view_is_read_by_a_named_key_that_is_unique_and_never_null(database: Database) -> None:
    fill(database)
    database.run('CREATE VIEW "V w" AS SELECT id, body || lang AS text, nullif(id, 3) AS gap, id / 6 AS twice FROM t')
    settings = {"table": 'news."V w"', "id_column": None}
    assert "has no primary key of one column; set source.key_column" in database.refused(**settings)
    assert "1 rows have no 'gap', or that of another row" in database.refused(**settings, key_column="gap")
    assert "99 rows have no 'twice', or that of another row" in database.refused(**settings, key_column="twice")
    rows = database.rows(**settings, key_column="id")
    assert len(rows) == len({row["doc_id"] for row in rows}) == 200


def test_what_cannot_be_read_is_refused_by_name(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.run("CREATE TABLE t (id int PRIMARY KEY, text text, ip inet, n numeric, u uuid, other int UNIQUE, span int, at date UNIQUE)")
    assert "has no column 'body', 'x' (found: id, text, ip," in database.refused(text_columns="body", metadata_columns=["x"])
    message = "ip is inet, n is numeric, which is not read; cast it in a view, such as ip::text"
    assert message in database.refused(metadata_columns=["ip", "n"])
    assert "has no column 'gone'" in database.refused(watermark_column="gone")
    assert "span has no index" not in database.refused(key_column="at")
    assert "key 'at' is date; set source.key_column to an integer, text or uuid" in database.refused(key_column="at")
    assert "source.key_column='span': news.t has no index that starts with it" in database.refused(key_column="span")
    assert "has no such table or view" in database.refused(table="news.none")
    assert "has no such table or view" in database.refused(table="t_pkey")
    with pytest.raises(EmptySourceError, match=r"news.t has no rows"):
        list_shards(database.source())
    database.run("INSERT INTO t (id, text) VALUES (1, 'x'); DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN")
    assert "'u' is extension<arrow.uuid>, not text" in database.refused(text_columns="u")
    reader = database.uri.replace("postgres:@", "reader@")
    assert "permission denied for schema news" in database.refused(uri=reader)
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.1)
    with pytest.raises(StorageError, match=r'cannot be listed .*database "none" does not exist.*PGPASSWORD'):
        list_shards(database.source(uri=database.uri.replace("/postgres?", "/none?")))
    with pytest.raises(StorageError, match="cannot be listed"):
        list_shards(database.source(uri="postgresql://127.0.0.1:9/postgres"))
    assert "(not a connection string)" in database.refused(uri="postgresql://h/d?nonsense=1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": None}, "needs table"),
        ({"format": "jsonl"}, "format jsonl is not for a database"),
        ({"version": 3}, "neither version nor storage_options"),
        ({"uri": "s3://b/t", "watermark_column": "w"}, "watermark_column is for a source at postgresql://"),
        ({"uri": "s3://b/t", "format": "jsonl"}, r"table is for databases \(sqlite, duckdb, postgresql://\), not for format jsonl"),
        ({"uri": "s3://b/t", "table": None, "format": "postgres"}, "format=postgres is for a source at postgresql://"),
        ({"uri": "postgresql://me:secret@h/d"}, "the address holds a password"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig.model_validate({"uri": "postgresql://h/d", "table": "t", **settings})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("ALTER TABLE t RENAME body TO other", 'column "body" does not exist'),
        ("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()", "terminating connection"),
    ],
)
def test_a_table_or_server_that_is_gone_makes_a_broken_shard(
    database: Database, change: LiteralString, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    monkeypatch.setattr(postgres_source, "_BATCH_ROWS", 2)
    source = database.source(text_columns="body", rows_per_unit=1)
    listing, metadata = select_shards(source, list_shards(source))
    units = read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, metadata)
    if reason.startswith("terminating"):
        next(units)
    database.run(change)
    with pytest.raises(SourceError, match=rf"news.t/[\w-]+: cannot be read \({reason}"):
        list(units)
