import os
import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, EmptySourceError, SourceError
from embedder.core.units import Task
from embedder.source.columns import inspect_source
from embedder.source.decompression import SMALL_SHARD_BYTES
from embedder.source.documents import read_units
from embedder.source.sampling import sample_documents
from embedder.source.shards import list_shards
from tests.source.conftest import Result

TEXTS = "CREATE TABLE docs (text); INSERT INTO docs VALUES ('one'), ('two');"


@pytest.fixture
def read():
    def read_all(uri: Path | str, metadata: pa.Schema | None = None, **settings: Any) -> Result:
        source = SourceConfig(uri=str(uri), **settings)
        listing = list_shards(source)
        schema = inspect_source(source, listing.shards, types=listing.types) if metadata is None else metadata
        return Result(list(read_units(Task("0" * 16, "0" * 32, listing.shards), source, schema)))

    return read_all


@pytest.fixture
def make(tmp_path):
    def make_database(script: str, name: str = "a.sqlite") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
        return path

    return make_database


def large(num_rows: int = 3000) -> str:
    """Return a script whose file is read from its place: a small one is fetched to memory first."""
    return f"""CREATE TABLE docs (n INTEGER, text TEXT); WITH RECURSIVE counted(n) AS (VALUES (0) UNION ALL
    SELECT n + 1 FROM counted WHERE n < {num_rows - 1}) INSERT INTO docs SELECT n, printf('%0500d', n) FROM counted;"""


def test_values_of_any_type_in_a_text_column_are_text_or_quarantined(make, read):
    path = make("CREATE TABLE docs (text); INSERT INTO docs VALUES ('a'), (5), (1.5), (x'6162'), (CAST(x'ff' AS TEXT)), (NULL), ('b')")
    got = read(path)
    assert (got.texts, got.documents["row"].to_pylist()) == (["a", "b"], [0, 6])
    assert got.documents["doc_id"].to_pylist() == [f"{path}#0", f"{path}#6"]
    assert got.reasons == [(1, "not_text"), (2, "not_text"), (3, "not_text"), (4, "undecodable"), (5, "null_text")]
    assert got.quarantined["excerpt"].to_pylist() == ["5", "1.5", "b'ab'", "?", None]


def test_metadata_has_the_type_of_its_values_and_is_cast_as_that_of_any_format(make, read):
    path = make("""CREATE TABLE docs (text, n, x, raw, at, mixed); INSERT INTO docs VALUES
    ('a', 9007199254740993, 0.5, x'ff', '2026-01-01', 1), ('b', NULL, NULL, NULL, NULL, 'one')""")
    names = ["n", "x", "raw", "at", "mixed"]
    got = read(path, metadata_columns=names, metadata_types={"at": "timestamp"}).documents.select(names)
    assert got.schema.types == [pa.int64(), pa.float64(), pa.binary(), pa.timestamp("us", "UTC"), pa.string()]
    assert got.to_pylist() == [
        {"n": 2**53 + 1, "x": 0.5, "raw": b"\xff", "at": datetime(2026, 1, 1, tzinfo=UTC), "mixed": "1"},
        {"n": None, "x": None, "raw": None, "at": None, "mixed": "one"},
    ]
    wrong = read(path, metadata_columns=["mixed"], metadata_types={"mixed": "int64"})
    assert (wrong.texts, wrong.reasons) == (["a"], [(1, "metadata_type")])


def test_ids_are_text_or_numbers_and_a_blob_is_neither(make, read):
    got = read(make("CREATE TABLE docs (id, text); INSERT INTO docs VALUES ('x', 'a'), (7, 'b'), (x'61', 'c'), (7, 'd')"), id_column="id")
    assert got.documents["doc_id"].to_pylist() == ["x", "7"]
    assert got.reasons == [(2, "missing_id"), (3, "duplicate_id")]


@pytest.mark.parametrize(
    ("script", "texts"),
    [
        ("CREATE TABLE docs (k INTEGER PRIMARY KEY, text); INSERT INTO docs VALUES (9, 'c'), (-1, 'a'), (5, 'b')", ["a", "b", "c"]),
        ("CREATE TABLE docs (text); CREATE INDEX i ON docs (text); INSERT INTO docs VALUES ('b'), ('a')", ["b", "a"]),
        ("CREATE TABLE docs (rowid, text); INSERT INTO docs VALUES (2, 'a'), (1, 'b')", ["a", "b"]),
        ("CREATE TABLE docs (text, k, l, PRIMARY KEY (l, k)) WITHOUT ROWID; INSERT INTO docs VALUES ('b', 1, 1), ('a', 2, 0)", ["a", "b"]),
        ("CREATE VIRTUAL TABLE docs USING fts5(text); INSERT INTO docs VALUES ('b'), ('a')", ["b", "a"]),
    ],
)
def test_rows_are_in_the_order_of_their_table(make, read, script, texts):
    assert read(make(script)).texts == texts


def test_a_table_is_named_only_if_there_are_several_and_a_view_needs_its_key(make, read):
    path = make(f"{TEXTS} CREATE VIEW reversed AS SELECT text, -rowid AS k, 1 AS one FROM docs")
    assert read(path).texts == ["one", "two"]
    assert read(path, table="reversed", key_column="k").texts == ["two", "one"]
    with pytest.raises(ConfigError, match=r"the rows of view 'reversed' have no order; set source.key_column"):
        read(path, table="reversed")
    with pytest.raises(ConfigError, match=r"'reversed' has no column 'id' \(found: text, k, one\); set source.key_column"):
        read(path, table="reversed", key_column="id")
    with pytest.raises(SourceError, match=r"1 of 2 rows have no 'one', or that of another row; set source.key_column"):
        read(path, table="reversed", key_column="one")
    with pytest.raises(ConfigError, match=r"no table 'none' \(found: docs, reversed\); set source.table"):
        read(path, table="none")
    other = make("CREATE TABLE notes (text)", path.name)
    with pytest.raises(ConfigError, match=r"several tables \(found: docs, notes, reversed\); set source.table"):
        read(other)
    assert read(other, table="docs").texts == ["one", "two"]


def test_a_file_without_the_table_is_a_broken_shard_beside_others(make, read, tmp_path):
    make(TEXTS, "source/a.sqlite")
    make("CREATE TABLE other (text)", "source/b.sqlite3")
    with pytest.raises(SourceError, match=r"b.sqlite3: no table 'docs' \(found: other\)"):
        read(tmp_path / "source", table="docs")


def test_a_name_that_is_no_column_is_not_taken_for_text(make, read):
    # SQLite takes an unknown name in double quotes for a string
    with pytest.raises(SourceError, match=r"no column 'body' \(found: text\); set source.text_columns"):
        read(make(TEXTS), pa.schema([]), text_columns="body")


def test_a_file_of_another_name_needs_the_format_and_a_compressed_one_is_not_read(make, read, write_file):
    path = make(TEXTS, "a.db")
    with pytest.raises(ConfigError, match=r"unknown format '.db'"):
        read(path)
    assert read(path, format="sqlite").texts == ["one", "two"]
    packed = write_file("packed/a.sqlite.gz", path.read_bytes())
    with pytest.raises(EmptySourceError, match="no file has a known suffix"):
        read(packed.parent)
    with pytest.raises(SourceError, match="it does not begin as an SQLite database does"):
        read(packed, format="sqlite")


@pytest.mark.parametrize("script", [TEXTS, large()], ids=["small", "large"])
def test_commits_in_a_log_beside_the_file_are_never_left_out_silently(make, read, script):
    path = make(f"PRAGMA journal_mode = WAL; {script}")
    source = SourceConfig(uri=str(path))
    before = list_shards(source).shards[0]
    assert read(path).num_records
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("INSERT INTO docs (text) VALUES ('newer')")
        writer.commit()
        assert path.stat().st_size == before.size_bytes
        pending = list_shards(source).shards[0]
        assert pending.version != before.version, "a refresh would skip it"
        with pytest.raises(SourceError, match=r"commits that it lacks are in .*a.sqlite-wal \([\d,]+ bytes, .*close the programs"):
            read(path)
        link = path.with_name("link.sqlite")
        link.symlink_to(path)
        with pytest.raises(SourceError, match=r"link.sqlite: commits that it lacks are in .*a.sqlite-wal"):
            read(link)
    assert read(path).texts[-1] == "newer"


def test_a_commit_that_was_cut_off_is_not_read_as_if_it_were_whole(make, read, tmp_path):
    path = make(large())
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.execute("UPDATE docs SET text = 'half'")
        copies = [tmp_path / "copy" / f"a.sqlite{end}" for end in ("", "-journal")]
        copies[0].parent.mkdir()
        for copy in copies:
            copy.write_bytes((tmp_path / copy.name).read_bytes())
    with pytest.raises(SourceError, match=r"commits that it lacks are in .*a.sqlite-journal"):
        read(copies[0].parent)


def test_a_file_that_is_edited_while_it_is_read_is_a_source_error(make):
    path = make(large())
    source = SourceConfig(uri=str(path), rows_per_unit=100)
    assert path.stat().st_size > SMALL_SHARD_BYTES
    units = read_units(Task("0" * 16, "0" * 32, list_shards(source).shards), source, pa.schema([]))
    assert len(next(units).documents) == 100
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("UPDATE docs SET text = 'edited' WHERE n = 2999")
        writer.commit()
    os.utime(path, (0, 0))
    with pytest.raises(SourceError, match="changed while it was read"):
        list(units)


def test_a_remote_file_is_read_from_a_copy_that_is_removed(make, read, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    files = fsspec.filesystem("memory")
    files.pipe_file("/sqlite/lang=de/a.sqlite", make(large()).read_bytes())
    got = read("memory://sqlite", metadata_columns=["lang", "n"])
    assert got.documents["n"].to_pylist() == list(range(3000))
    assert set(got.documents["lang"].to_pylist()) == {"de"}
    assert list((tmp_path / "temp").iterdir()) == []
    files.pipe_file("/sqlite/lang=de/a.sqlite-wal", b"frames")
    with pytest.raises(SourceError, match=r"commits that it lacks are in memory:///sqlite/lang=de/a.sqlite-wal"):
        read("memory://sqlite")
    files.rm("/sqlite", recursive=True)


def test_a_column_that_its_folder_names_must_agree(make, read, tmp_path):
    make("CREATE TABLE docs (text, lang); INSERT INTO docs VALUES ('a', 'de'), ('b', NULL)", "lang=de/a.sqlite")
    assert read(tmp_path / "lang=de").texts == ["a", "b"]
    with pytest.raises(SourceError, match="column 'lang' holds null, and its folder names \"de\""):
        read(tmp_path, metadata_columns=["lang"])


def test_a_sample_of_a_large_file_estimates_its_documents(make):
    path = make(large(30_000))
    source = SourceConfig(uri=str(path))
    sample = sample_documents(source, list_shards(source), 10, 0)
    assert sample.records_read < 20_000
    assert sample.estimate_documents(path.stat().st_size) == pytest.approx(30_000, rel=0.1)


def test_values_that_break_a_constraint_are_read(make, read):
    script = "CREATE TABLE docs (text CHECK (text != 'b')); PRAGMA ignore_check_constraints = ON; INSERT INTO docs VALUES ('a'), ('b')"
    assert read(make(script)).texts == ["a", "b"]


def test_damage_to_the_structure_never_loses_or_doubles_a_row(make, read, write_file):
    data, draw = make(large(400)).read_bytes(), random.Random(0)
    found = set()
    for _ in range(150):
        damaged = bytearray(data)
        # a page's head states its kind, its cells and where they are
        damaged[draw.randrange(len(data) // 4096) * 4096 + draw.randrange(16)] ^= 1 << draw.randrange(8)
        try:
            found.add(read(write_file("b.sqlite", bytes(damaged))).num_records)
        except (SourceError, ConfigError):
            found.add(None)
    assert None in found
    assert found <= {None, 400}


def test_a_table_or_key_for_other_files_is_refused(write_file, read, make, tmp_path):
    make(TEXTS, "both/a.sqlite")
    write_file("both/b.jsonl", [{"text": "a"}])
    with pytest.raises(ConfigError, match=r"source.table='docs': .*b.jsonl is not a database; leave it out, or narrow source.uri"):
        read(tmp_path / "both", table="docs")
    with pytest.raises(ValueError, match=r"key_column is for databases \(sqlite, duckdb, postgresql://\), not for format csv"):
        SourceConfig(uri="a.csv", format="csv", key_column="k")
