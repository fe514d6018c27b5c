"""What takes seconds begins beside the rest of the preparation, once there is something to do it for."""

from pathlib import Path

import pytest

from embedder.config.embed import EmbedConfig
from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.core.units import Part, PartName, Stats
from embedder.run.prepare import RunPlan, prepare_run
from embedder.table.delta import Change, commit_table
from tests.integration.conftest import Corpus, Site, documents

pytestmark = pytest.mark.real


@pytest.fixture
def site(tmp_path: Path, minilm: str) -> Site:
    site = Site(Corpus(str(tmp_path / "corpus")), str(tmp_path / "table"), minilm)
    site.corpus.put("a.jsonl", documents(0, 5))
    return site


@pytest.fixture
def begun() -> list[EmbedConfig]:
    return []


def test_a_first_run_begins_once(site: Site, begun: list[EmbedConfig]) -> None:
    config = site.config()
    prepare_run(config, begun.append)
    assert begun == [config]


def test_it_begins_before_the_model_is_looked_at_closely(site: Site, begun: list[EmbedConfig]) -> None:
    with pytest.raises(ConfigError, match="positions for"):
        prepare_run(site.config(chunking={"max_tokens": 10_000}), begun.append)
    assert len(begun) == 1


@pytest.mark.parametrize(
    "sections",
    [
        {"source": {"id_column": "nothing"}},
        {"source": {"uri": "nowhere"}},
        {"compute": {"backend": "openvino"}},
        {"embedding": {"model": "./nowhere"}},
        {"embedding": {"depth": 7}},
        {"embedding": {"dim": 385}},
    ],
    ids=str,
)
def test_nothing_begins_for_settings_that_are_refused(
    site: Site, begun: list[EmbedConfig], sections: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.model.backends.has_openvino", lambda: False)
    with pytest.raises(ConfigError):
        prepare_run(site.config(**sections), begun.append)
    assert not begun


def publish(site: Site, prepared: RunPlan) -> None:
    parts = [Part(str(PartName(task.key, task.version, 0, 5, True)), 5, 1_000, Stats(documents=5, chunks=5)) for task in prepared.plan.read]
    for part in parts:
        Path(site.table_uri).mkdir(exist_ok=True)
        Path(site.table_uri, part.name).touch()
    info = {"spec": prepared.spec.model_dump(), "bucket_bits": prepared.bucket_bits}
    commit_table(Location(site.table_uri), Change(tuple(parts), (), prepared.schema, info), None)


def test_nothing_begins_for_a_table_that_may_be_up_to_date(site: Site, begun: list[EmbedConfig]) -> None:
    publish(site, prepare_run(site.config()))
    assert prepare_run(site.config(), begun.append).plan.is_empty
    assert not begun


def test_how_many_buckets_there_are_stays_until_the_space_changes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(site, prepare_run(site.config()))
    monkeypatch.setattr("embedder.core.plan.BUCKET_SHARDS", 1)
    for number in range(1, 4):
        site.corpus.put(f"{number}.jsonl", documents(5 * number, 5))
    assert prepare_run(site.config()).bucket_bits == 0
    assert prepare_run(site.config(embedding={"dim": 8}, output={"replace": True})).bucket_bits == 2
