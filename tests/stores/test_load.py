"""A store follows its table: everything once, then what changed, whatever was interrupted; one body over all stores."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from embedder.core.errors import ConfigError, StorageError, VersionGoneError
from embedder.core.storage import Location
from embedder.search.exact import nearest_rows, open_dataset, open_table
from embedder.source.filter import parse_filter
from embedder.stores.load import read_version, sync
from embedder.stores.open import open_loaded, open_store
from embedder.stores.pgvector import PgvectorStore
from embedder.stores.rows import row_id_of
from tests.stores.conftest import DIM, SCHEMA, STORES, Loader, TypedTable, corpus_of, key_of, vector_of

pytestmark = pytest.mark.real


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as every store can return it: times as instants, without `row`, which a refresh need not follow."""
    values = {name: value for name, value in row.items() if name not in ("row", "embedding")}
    seen = values["seen"]
    values["seen"] = datetime.fromisoformat(seen) if isinstance(seen, str) else seen
    values["tags"] = list(values["tags"]) if values["tags"] is not None else None
    return values


def assert_in_step(loader: Loader, version: int) -> None:
    wanted, found = loader.table.rows(version), loader.rows()
    assert sorted(found) == sorted(wanted)
    for key, row in wanted.items():
        assert plain(found[key]) == plain(row)
    loaded = loader.loaded()
    assert loaded is not None
    assert (loaded.version, loaded.target, loaded.spec.space_id) == (version, None, loader.table.spec.space_id)


def test_a_first_load_a_refresh_and_nothing_to_do(loader: Loader) -> None:
    loader.table.follow(corpus_of(3))
    first = loader.load()
    assert (first.outcome, first.version, first.upserted, first.rows) == ("loaded", 0, 72, 72)
    assert_in_step(loader, 0)
    assert loader.load().outcome == "nothing to do"

    changed = corpus_of(3)
    changed["shard-0"] = ["new one", *changed["shard-0"][2:], "d1 w0 changed"]  # a row that came, rows that left and that changed
    del changed["shard-1"]
    changed["shard-9"] = ["d0 moved"]
    loader.table.follow(changed)
    second = loader.load()
    assert (second.outcome, second.previous, second.version) == ("refreshed", 0, 1)
    assert second.upserted < 10, "only what changed is written"
    assert_in_step(loader, 1)
    again = loader.load()
    assert (again.outcome, again.upserted, again.deleted) == ("nothing to do", 0, 0)


def test_search_agrees_with_exact_search_with_and_without_filters(loader: Loader) -> None:
    loader.table.follow(corpus_of(3))
    loader.load()
    query_D = np.array(vector_of("query"), np.float32)
    with open_store(loader.config) as store:
        for text in FILTERS:
            where = parse_filter(text, SCHEMA) if text else None
            expected = nearest_rows(open_dataset(Location(loader.table.uri)), query_D, 7, where)
            found = store.search(query_D, 7, where)
            assert [key_of(hit.row) for hit in found] == [key_of(hit.row) for hit in expected], text
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
            assert expected, text


FILTERS = (
    "",
    "topic = 'x'",
    "topic = 'it''s \"y\"' or topic = 'ü\\'",
    "topic != 'x' and year >= 2000",
    "topic in ('x', 'ü\\') and not (year < 2000 or good = true)",
    "topic not in ('x', 'ü\\')",
    "year is null",
    "year is not null and weight <= 4000.5",
    "good = false and seen > '2020-02-01T00:00:00Z'",
    "not seen <= '2020-02-01'",
    "tags has 'a'",
    "not tags has 'it''s b'",
    "weight > 100 and weight != 200",
    "topic = '{curly} 100%' or topic = 'x'",
    "year > 2000.5",
    "year not in (2001, 2001.5) and not year < -0.5",
)


def test_another_space_is_refused_by_name_and_replaced_on_demand(loader: Loader) -> None:
    loader.table.follow(corpus_of(2))
    loader.load()
    other = dataclasses.replace(loader, table=loader.table.of_space(depth=1))
    version = other.table.follow(corpus_of(2, salt="other"))
    with pytest.raises(ConfigError) as caught:
        other.load()
    for spec in (loader.table.spec, other.table.spec):
        assert spec.space_id in str(caught.value)
    assert "depth" in str(caught.value)
    assert "--replace" in str(caught.value)
    assert other.load(replaces=True).outcome == "loaded"
    assert_in_step(other, version)


def test_a_process_that_did_not_load_a_store_searches_it(tmp_path: Path, section_of: Callable[[str], dict[str, Any]]) -> None:
    table = TypedTable(str(tmp_path / "table"))
    table.follow(corpus_of(1))
    loaders = {tmp_path / f"{kind}.yaml": Loader(table, section_of(kind)) for kind in STORES}
    for path, loader in loaders.items():
        path.write_text(yaml.safe_dump({"table": {"uri": table.uri}, **loader.section}))
    code = "import sys; from jobs.load import main; [main([path]) for path in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", code, *map(str, loaders)], check=True, cwd=Path(__file__).parents[2])
    for loader in loaders.values():
        with open_loaded(loader.config) as target:
            assert len(target.find(np.array(vector_of("query"), np.float32), 5, None)) == 5


def test_a_version_from_before_a_swap_is_loaded_as_of_the_space_it_was_made_in(loader: Loader) -> None:
    loader.table.follow(corpus_of(2))
    loader.table.follow(corpus_of(3))
    other = loader.table.of_space(depth=1)
    newest = other.follow(corpus_of(2, salt="other"))
    loader.load(version=1)
    assert_in_step(loader, 1)
    assert read_version(Location(other.uri), newest).spec == other.spec


INDEXES: dict[str, list[tuple[dict[str, Any], str]]] = {
    "lance": [({"index": "ivf_flat"}, "index ivf_flat"), ({"index": "ivf_hnsw_sq"}, "index ivf_hnsw_sq"), ({"index": "none"}, "no index")],
    "pgvector": [
        ({"index": "ivfflat"}, "index ivfflat"),
        ({"m": 8}, "index hnsw"),
        ({"m": 9}, "index hnsw"),
        ({"index": "none"}, "no index"),
    ],
    "milvus": [({"index": "hnsw"}, "index HNSW"), ({"index": "auto"}, "index HNSW"), ({"index": "flat"}, "index FLAT")],
}
"""Settings that follow one another, and what the load says of each. DuckDB's hnsw needs an extension that is downloaded."""


@pytest.mark.parametrize("loader", INDEXES, indirect=True)
def test_an_index_of_other_settings_takes_the_place_of_the_one_that_is_there(loader: Loader) -> None:
    [kind] = loader.section
    loader.table.follow(corpus_of(3))
    loader.load()
    for settings, said in INDEXES[kind]:
        other = dataclasses.replace(loader, section={kind: loader.section[kind] | settings})
        report = other.load()
        assert (report.outcome, report.upserted) == ("nothing to do", 0)
        assert report.index.startswith(said)
        assert said in report.text()
        assert_in_step(other, 0)
        if "m" in settings:
            with open_store(other.config) as store:
                assert isinstance(store, PgvectorStore)
                assert store._built_index() == ("hnsw", {"m": settings["m"], "ef_construction": 64})


def test_another_table_is_refused_although_its_space_is_equal(loader: Loader, tmp_path: Any) -> None:
    loader.table.follow(corpus_of(1))
    loader.load()
    other = dataclasses.replace(loader, table=dataclasses.replace(loader.table, uri=str(tmp_path / "other")))
    other.table.follow(corpus_of(1))
    with pytest.raises(ConfigError, match="holds rows of another table"):
        other.load()


def test_a_table_that_someone_else_made_is_left_alone(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.table.follow(corpus_of(1))
    loader.load()
    with open_store(loader.config) as store:
        monkeypatch.setattr(type(store), "loaded", lambda self: None)
    with pytest.raises(StorageError, match=r"exists, and jobs\.load did not make it"):
        loader.load(replaces=True)


def test_rows_that_someone_else_removed_are_noticed(loader: Loader) -> None:
    loader.table.follow(corpus_of(2))
    loader.load()
    loader.table.follow(corpus_of(3))
    with open_store(loader.config) as store:
        loaded = store.loaded()
        assert loaded is not None
        store.record(loaded)
        store.delete([row_id_of("shard-0", "d0", 0)])
        store.record(loaded)
    with pytest.raises(StorageError, match=r"71 rows after the load, but .* has 72 at version 1"):
        loader.load()


def test_a_version_that_was_vacuumed_since_is_said_and_loaded_anew_on_demand(loader: Loader) -> None:
    loader.table.follow(corpus_of(2))
    loader.load()
    left = set(Path(loader.table.uri).glob("*.parquet"))
    loader.table.follow({"shard-0": ["d0 new"]})
    for part in left:
        part.unlink()
    with pytest.raises(VersionGoneError, match="--replace"):
        loader.load()
    assert loader.load(replaces=True).upserted == 2
    assert_in_step(loader, 1)


def test_a_version_that_was_vacuumed_is_refused_and_the_store_stays_as_it_was(loader: Loader) -> None:
    loader.table.follow(corpus_of(2))
    left = set(Path(loader.table.uri).glob("*.parquet"))
    loader.table.follow({"shard-0": ["d0 new"]})
    for part in left:
        part.unlink()
    gone = r"version 0 can no longer be read: 2 of its parts were vacuumed .*; name a later version, or load the table anew"
    with pytest.raises(VersionGoneError, match=f"{gone}$"):
        loader.load(version=0)
    assert loader.loaded() is None
    loader.load()
    for replaces in (False, True):
        with pytest.raises(VersionGoneError, match=gone):
            loader.load(version=0, replaces=replaces)
        assert_in_step(loader, 1)
    assert loader.load().outcome == "nothing to do"


def test_a_first_load_whose_version_was_vacuumed_begins_anew(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedder.stores.load.GROUP_ROWS", 20)
    loader.table.follow(corpus_of(3))
    die(loader, "append", True)
    left = set(Path(loader.table.uri).glob("*.parquet"))
    loader.table.follow({"shard-0": ["d0 new"]})
    for part in left:
        part.unlink()
    loader.load()
    assert_in_step(loader, 1)


class StoppedError(Exception):
    """The load dies here."""


@pytest.mark.parametrize(("first", "later"), [("record", "record"), ("append", "upsert"), ("create", "delete")])
@pytest.mark.parametrize("after", [False, True])
def test_a_load_that_died_at_any_step_is_ended_by_the_next(
    loader: Loader, first: str, later: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.stores.load.GROUP_ROWS", 20)
    corpus = corpus_of(3)
    loader.table.follow(corpus)
    die(loader, first, after)
    loader.load()
    assert_in_step(loader, 0)
    loader.table.follow(corpus | {"shard-0": corpus["shard-0"][3:], "shard-1": ["d0 other", "d1 w1"]})
    die(loader, later, after)
    version = loader.table.follow(corpus | {"shard-0": corpus["shard-0"][:3], "shard-2": []})
    loader.load()
    assert_in_step(loader, version)


def die(loader: Loader, step: str, after: bool) -> None:
    """Run a load that stops before or after the second call of a step, or the first where there is but one."""
    last = 2 if step in ("record", "append") else 1
    with pytest.MonkeyPatch.context() as patch, open_store(loader.config) as store:
        genuine, calls = getattr(type(store), step), []

        def stopping(self: Any, *args: Any) -> Any:
            calls.append(step)
            if len(calls) == last and not after:
                raise StoppedError
            done = genuine(self, *args)
            if len(calls) == last:
                raise StoppedError
            return done

        patch.setattr(type(store), step, stopping)
        with pytest.raises(StoppedError):
            sync(store, read_version(Location(loader.table.uri)))


TAKEN: dict[str, set[str]] = {"lance": {"binary"}, "pgvector": {"binary"}, "qdrant": set(), "milvus": set(), "duckdb": {"int8"}}
"""Milvus Lite takes neither; a server takes both."""


@pytest.mark.parametrize("quantization", ["int8", "binary"])
def test_codes_go_where_there_is_a_type_for_them_and_are_refused_by_name_elsewhere(loader: Loader, quantization: str) -> None:
    [kind] = loader.section
    loader = dataclasses.replace(loader, table=loader.table.of_space(quantization=quantization, calibration="c"))
    loader.table.follow(corpus_of(3))
    if quantization not in TAKEN[kind]:
        with pytest.raises((ConfigError, StorageError), match=quantization if kind != "milvus" else "Lite"):
            loader.load()
        return
    loader.load()
    query_D = np.array(vector_of("query"), np.float32)
    exact = open_table(Location(loader.table.uri)).find(query_D, 72, None)
    with open_loaded(loader.config) as target:
        hits = target.find(query_D, 5, None)
        filtered = target.find(query_D, 5, parse_filter("topic = 'x'", SCHEMA))
    assert {hit.row["topic"] for hit in filtered} == {"x"}
    scores = {key_of(hit.row): hit.score for hit in exact}
    if quantization == "int8":
        assert [hit.score for hit in hits] == pytest.approx([scores[key_of(hit.row)] for hit in hits], abs=0.02)
        assert hits[0].score >= exact[0].score - 0.03
    else:
        bits = np.array([loader.table.rows()[key_of(hit.row)]["embedding"][0] for hit in hits], np.uint8)
        in_common = DIM - np.bitwise_count(bits ^ np.packbits(query_D > 0)[0])
        assert [hit.score for hit in hits] == in_common.tolist()
