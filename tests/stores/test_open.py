"""The settings of a load: one store each, packages asked for by their extra, and every shipped file loads."""

import sys
from pathlib import Path

import pytest
import yaml

from embedder.config.load import dump_config, load_config
from embedder.core.errors import ConfigError, StorageError
from embedder.stores.config import STORE_SECTIONS, LoadConfig
from embedder.stores.open import open_store
from jobs.load import ACTIONS, main
from tests.stores.conftest import STORES, Loader, corpus_of

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


def test_every_store_has_a_shipped_config_that_loads_and_prints_to_the_same() -> None:
    paths = sorted((ROOT / "configs/load").glob("*.yaml"))
    assert sorted(path.stem for path in paths) == sorted(STORE_SECTIONS) == sorted(STORES)
    for path in paths:
        config = load_config(LoadConfig, [str(path)]).config
        assert config.stores == [path.stem]
        assert LoadConfig.model_validate(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "set one store; found none of lance, pgvector, qdrant, milvus, duckdb"),
        (["--lance.uri", "x", "--duckdb.path", "y"], "found lance, duckdb of"),
        (["--qdrant.name", "x"], "set either url, of a server, or path, of a folder"),
        (["--lance.uri", "x", "--lance.name", "no spaces"], "lance.name='no spaces'"),
        (["--lance.uri", "x", "--lance.indx", "none"], "unknown key 'lance.indx'; did you mean 'index'?"),
    ],
)
def test_an_impossible_load_is_refused_by_name(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(LoadConfig, ["--table.uri", "t", *flags], ACTIONS)
    assert message in str(caught.value)


def test_help_shows_every_store(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(ROOT / "configs/load/lance.yaml"), "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "--lance.index" in printed
    assert "not set: --pgvector.dsn --pgvector.name" in printed


@pytest.mark.parametrize(
    ("kind", "package"), [("lance", "lancedb"), ("pgvector", "psycopg"), ("qdrant", "qdrant_client"), ("milvus", "pymilvus")]
)
def test_a_missing_package_is_named_with_its_extra(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"embedder.stores.{kind}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # which is how Python marks what must not be imported
    section = {"dsn": "x"} if kind == "pgvector" else {"path": "x"} if kind in ("qdrant", "duckdb") else {"uri": "x"}
    with (
        pytest.raises(ConfigError, match=rf"{kind}: needs the package '{package}'.*pip install '\.\[{kind}\]'"),
        open_store(LoadConfig.model_validate({"table": {"uri": "t"}, kind: section})),
    ):
        pass


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:secret@127.0.0.1:9/database?connect_timeout=1",
        "postgresql://me@127.0.0.1:9/database?connect_timeout=1&password=secret",
        "host=127.0.0.1 port=9 connect_timeout=1 password=secret",
        "host=127.0.0.1 password=a secret",
    ],
)
def test_a_database_that_does_not_answer_is_named_without_its_password(dsn: str) -> None:
    config = LoadConfig.model_validate({"table": {"uri": "t"}, "pgvector": {"dsn": dsn}})
    with pytest.raises(StorageError, match="no connection") as caught, open_store(config):
        pass
    assert "secret" not in str(caught.value)


def test_the_job_loads_then_has_nothing_to_do(loader: Loader, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader.table.follow(corpus_of(1))
    config = tmp_path / "load.yaml"
    config.write_text(yaml.safe_dump({"table": {"uri": loader.table.uri}, **loader.section}))
    assert main([str(config)]) == 0
    first = capsys.readouterr().out
    assert "written  24 rows in" in first
    assert f"version 0 of {loader.table.uri}, 24 rows" in first
    assert main([str(config), "--json"]) == 0
    assert '"outcome": "nothing to do"' in capsys.readouterr().out
