"""When a run goes without Ray; that its table equals one made on Ray is shown in tests/integration/test_embed.py."""

from pathlib import Path
from typing import Any

import pytest

from embedder.config.embed import EmbedConfig
from embedder.core.units import Shard
from embedder.pipeline import in_process
from embedder.table.attempts import Attempts

SMALL = (Shard("b.jsonl", "", 1),)


def config_of(folder: Path, **sections: dict[str, Any]) -> EmbedConfig:
    values: dict[str, Any] = {"source": {"uri": f"{folder}/corpus"}, "embedding": {"model": "m"}, "compute": {"device": "cpu"}}
    values["output"] = {"uri": f"{folder}/table"}
    return EmbedConfig.model_validate({name: values.get(name, {}) | sections.get(name, {}) for name in {*values, *sections}})


def test_a_small_corpus_on_one_machine_needs_no_ray(tmp_path: Path) -> None:
    most = in_process.MOST_BYTES
    assert in_process.suits(config_of(tmp_path), [Shard("a.jsonl", "", most - 1), *SMALL])
    assert not in_process.suits(config_of(tmp_path), [Shard("a.jsonl", "", most), *SMALL])
    assert not in_process.suits(config_of(tmp_path), [Shard("a.jsonl.gz", "", most // 2)]), "which is more text"


@pytest.mark.parametrize(
    "sections",
    [
        {"compute": {"actors": 2}},
        {"compute": {"device": "cuda"}},
        {"embedding": {"model": "openai:m"}},
    ],
    ids=["actors", "GPU", "API"],
)
def test_settings_for_several_actors_or_a_device_take_ray(tmp_path: Path, sections: dict[str, dict[str, Any]]) -> None:
    assert not in_process.suits(config_of(tmp_path, **sections), SMALL)


def test_a_cluster_that_is_named_or_joined_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        assert not in_process.suits(config_of(tmp_path), SMALL)
    monkeypatch.setattr(in_process, "is_ray_running", lambda: True)
    assert not in_process.suits(config_of(tmp_path), SMALL)


def test_a_gpu_is_left_to_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_process, "_has_gpu", lambda: True)
    assert not in_process.suits(config_of(tmp_path, compute={"device": "auto"}), SMALL)


def test_a_table_with_an_attempt_that_did_not_end_is_left_to_workers_that_may_die(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    attempts = Attempts(config.output.location)
    number = attempts.begin("part")
    assert not in_process.suits(config, SMALL)
    attempts.end("part", number)
    assert in_process.suits(config, SMALL)
