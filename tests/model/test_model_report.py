"""jobs.models says whether a model runs, with its sizes or the reason, and loads no weight."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import embedder.model.loading as loading
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.model.files import recipe as files
from embedder.model.files.families import FAMILIES
from embedder.model.model_report import describe_model
from embedder.model.resolve import resolve_model
from jobs.models import main
from tests.model.conftest import TinyModel
from tests.model.files.test_recipe import edit


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load_transformer", None)


def test_a_report_holds_what_a_run_resolves(tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_model.folder), "--json"]) == 0
    report, resolved = json.loads(capsys.readouterr().out), tiny_model.resolve()
    assert (report["runs"], report["family"], report["weights_checked"]) == (True, "bert", True)
    spec = resolved.spec
    assert (report["layers"], report["components"], report["pooling"]) == (spec.depth, spec.dim, spec.pooling)
    assert (report["max_tokens"], report["prompt"], report["query_prompt"]) == (spec.max_tokens, spec.prompt, spec.query_prompt)
    assert main([str(tiny_model.folder)]) == 0
    assert "weights, float32" in capsys.readouterr().out


def test_the_bytes_of_a_depth_are_those_of_the_encoder(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    by_depth = describe_model(str(tiny_model.folder), None)["weight_bytes"]["float32"]
    assert list(by_depth) == [1, 2, 3, 4]
    monkeypatch.undo()
    assert by_depth[2] == tiny_model.load(depth=2).weight_bytes


def test_a_refused_model_is_exit_code_1_with_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / "config.json", model_type="xlnet")
    assert main([str(folder)]) == 1
    assert "family 'xlnet' is not supported" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"model_type": "qwen3_vl"}, "'qwen3_vl' is not supported (it reads every text in a chat template"),
        ({"model_type": "lfm2"}, "'lfm2' is not supported (transformers' convolutions see earlier tokens only"),
        ({"model_type": "bidirectional_pplx_qwen3"}, "is not supported (a module of its remote code makes its vectors int8)"),
        ({"position_embedding_type": "rotary", "num_experts": 8}, "ignores position_embedding_type='rotary', num_experts=8, which"),
    ],
)
def test_a_much_used_model_is_refused_with_its_reason(entries: dict[str, Any], reason: str, folder: Path) -> None:
    edit(folder / "config.json", **entries)
    assert reason in describe_model(str(folder), None)["refused"]


def test_a_hub_model_is_described_without_its_weights(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    def download(model: str, **options: Any) -> str:
        assert "*.safetensors" in options["ignore_patterns"]
        return str(folder)

    monkeypatch.setattr(files, "snapshot_download", download)
    report = describe_model("acme/encoder", None)
    assert (report["runs"], report["weights_checked"], report["layers"]) == (True, False, 4)


def test_without_a_model_the_job_lists_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(family in listed for family in FAMILIES)
    with pytest.raises(ConfigError, match="needs a model"):
        main(["--revision", "main"])


@pytest.mark.parametrize(
    ("name", "file"), [("matryoshka_dimensions", "config.json"), ("matryoshka_dims", "config_sentence_transformers.json")]
)
def test_a_dim_that_the_models_files_do_not_name_is_noted(name: str, file: str, folder: Path) -> None:
    edit(folder / file, **{name: [48, 16, 999, "many"]})
    assert describe_model(str(folder), None)["matryoshka_dims"] == [16, 48]
    notes: Callable[[int | None], list[str]] = lambda dim: [  # noqa: E731
        line
        for line in resolve_model(EmbeddingConfig(model=str(folder), dim=dim), ChunkingConfig()).guesses
        if line.startswith("embedding.dim")
    ]
    assert notes(20) == ["embedding.dim=20: the model's files name 16, 48, 64; another dim may rank worse"]
    assert notes(16) == notes(None) == []
