"""A source that is a table, and is not read as one, is refused by name, wherever its uri lies in it."""

import sys
from pathlib import Path

import pytest

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError
from embedder.source.shards import list_shards

LOGS = {
    "Delta": ("_delta_log/00000000000000000000.json", "year=2024/part-0.parquet"),
    "Hudi": (".hoodie/hoodie.properties", "year=2024/f1_0-1-0_1.parquet"),
    "Iceberg": ("metadata/00000-7f.metadata.json", "data/year=2024/00000-0-0.parquet"),
    "Lance": ("_versions/1.manifest", "data/9c.lance"),
}


@pytest.fixture(params=LOGS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder `lake` that holds a table and, beside it, a plain shard."""
    log, data = LOGS[request.param]
    for name in ("plain/a.jsonl", f"deep/table/{log}", f"deep/table/{data}"):
        path = tmp_path / "lake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    return str(request.param)


def refused(uri: Path | str, **settings: str) -> str:
    with pytest.raises(ConfigError) as raised:
        list_shards(SourceConfig.model_validate({"uri": str(uri), **settings}))
    return str(raised.value)


def test_a_table_is_refused_by_its_folder_and_from_below_and_above(kind: str, tmp_path: Path) -> None:
    table, data = tmp_path / "lake" / "deep" / "table", LOGS[kind][1]
    assert f": is a table ({kind})" in refused(table, format="parquet")
    assert f": holds a table ({kind}, '{table}')" in refused(tmp_path / "lake")
    assert f": lies in a table ({kind}, '{table}')" in refused((table / data).parent, format="parquet")
    assert f": lies in a table ({kind}, '{table}')" in refused(table / data, format="parquet")
    for pattern in ("table/*/*", "*/**/*.parquet", f"table/{Path(data).parent}/*", f"*/{'/'.join('*' for _ in Path(data).parts)}"):
        assert f"a table ({kind}, '{table}')" in refused(tmp_path / "lake" / "deep" / pattern, format="parquet")
    assert len(list_shards(SourceConfig(uri=f"{tmp_path}/lake/plain")).shards) == 1
    assert len(list_shards(SourceConfig(uri=f"{tmp_path}/lake/*/*.jsonl")).shards) == 1
    table.rename(tmp_path / "lake" / "_old")
    assert len(list_shards(SourceConfig(uri=f"{tmp_path}/lake")).shards) == 1


def test_folders_that_only_look_like_a_table_are_read(tmp_path: Path) -> None:
    for name in ("data/a.jsonl", "metadata/a.json", "st.lance/b.jsonl", "delta_log/c.jsonl", "versions/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    assert len(list_shards(SourceConfig(uri=str(tmp_path))).shards) == 5
    assert len(list_shards(SourceConfig(uri=f"{tmp_path}/data")).shards) == 1


@pytest.mark.parametrize(("module", "package", "extra"), [("iceberg", "pyiceberg.catalog", "iceberg"), ("lance", "lance", "lance-source")])
def test_a_table_whose_package_is_not_installed_names_the_extra(
    module: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name == f"embedder.source.{module}_source" or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    log, _ = LOGS[module.capitalize()]
    (tmp_path / log).parent.mkdir()
    (tmp_path / log).write_bytes(b"{}")
    assert f"pip install '.[{extra}]'" in refused(tmp_path)
