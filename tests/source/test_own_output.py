"""A table inside its own source is refused, however the two addresses are spelled."""

from pathlib import Path

import pytest

from embedder.config.embed import EmbedConfig
from embedder.core.errors import ConfigError
from embedder.source.shards import refuse_own_source


def check(source: str, table: str, cut: str | None = None) -> None:
    output = {"uri": table, "cuts": [{"uri": cut}] if cut else []}
    refuse_own_source(EmbedConfig.model_validate({"source": {"uri": source}, "embedding": {"model": "m"}, "output": output}))


@pytest.mark.parametrize(
    ("source", "table"),
    [
        ("corpus", "corpus/out"),
        ("corpus/", "corpus"),
        ("{here}/corpus", "corpus/a/out"),
        ("corpus", "{here}/corpus/out"),
        ("corpus", "elsewhere/../corpus/out"),
        ("file://{here}/corpus", "corpus/out"),
        ("corpus", "link/out"),
        ("corpus/**", "corpus/out"),
        ("corpus/**/*.parquet", "corpus/a/out"),
        ("corpus/*/*.parquet", "corpus/out"),
        ("s3://bucket/corpus", "s3://bucket/corpus/out"),
    ],
)
def test_a_table_within_its_source_is_refused(source: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    named = table.format(here=tmp_path)
    with pytest.raises(ConfigError, match=r"^output\.uri='.*': lies in source\.uri='.*', the table would become its own source"):
        check(source.format(here=tmp_path), named)
    with pytest.raises(ConfigError, match=r"^output\.cuts\[0\]\.uri="):
        check(source.format(here=tmp_path), "elsewhere", named)


def test_an_existing_folder_with_brackets_is_not_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data [2024]").mkdir()
    with pytest.raises(ConfigError, match="the table would become its own source"):
        check("data [2024]", "data [2024]/out")
    check("data [2024]", "data 2/out")


@pytest.mark.parametrize(
    ("source", "table"),
    [
        ("corpus", "corpus2"),
        ("corpus/in", "corpus/out"),
        ("corpus/*.parquet", "corpus/out"),
        ("corpus/**/*.jsonl", "corpus/out"),
        ("corpus/a.jsonl", "corpus"),
        ("s3://bucket/corpus", "s3://other/corpus/out"),
    ],
)
def test_a_table_beside_its_source_is_allowed(source: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(source, table, f"{table}-cut")
