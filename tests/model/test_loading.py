import dataclasses
import logging
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedder.core.errors import ConfigError, ModelError
from embedder.model import loading
from embedder.model.files.recipe import read_recipe
from embedder.model.loading import assert_depth, load_transformer, resolve_dtype


def test_layers_above_the_depth_are_not_built(tiny_model: Any) -> None:
    recipe = read_recipe(tiny_model.folder)
    two = load_transformer(recipe, 2, "none", torch.float32)
    four = load_transformer(recipe, 4, "none", torch.float32)
    layer = sum(parameter.numel() for parameter in four.get_submodule("encoder.layer.0").parameters())
    assert sum(p.numel() for p in four.parameters()) - sum(p.numel() for p in two.parameters()) == 2 * layer


def test_a_depth_beyond_the_model_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match=r"embedding.depth=5: 'model' has 4 layers; choose 1 to 4"):
        load_transformer(read_recipe(tiny_model.folder), 5, "none", torch.float32)


def test_a_module_with_another_number_of_layers_is_refused(tiny_model: Any) -> None:
    recipe = read_recipe(tiny_model.folder)
    model = load_transformer(recipe, 3, "none", torch.float32)
    with pytest.raises(ModelError, match=r"embedding.depth=2: 'model' was built with 3 layers"):
        assert_depth(model, recipe, 2)


def test_a_missing_weight_is_refused_by_name(tiny_model: Any, tmp_path: Any) -> None:
    (tmp_path / "cut").mkdir()
    for path in tiny_model.folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            (tmp_path / "cut" / path.name).write_bytes(path.read_bytes())
    weights = load_file(tiny_model.folder / "model.safetensors")
    missing = weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    recipe = dataclasses.replace(read_recipe(tiny_model.folder), transformer_folder=tmp_path / "cut")
    with pytest.raises(ModelError, match=r"encoder\.layer\.1\.output\.dense\.weight, 1 in all"):
        load_transformer(recipe, 2, "none", torch.float32)
    save_file(weights | {"encoder.layer.1.output.dense.weight": missing[:10]}, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layer\.1\.output\.dense\.weight: \[10, 96\] in the file, \[64, 96\] by config\.json, 1 in all"):
        load_transformer(recipe, 2, "none", torch.float32)


def test_a_config_that_makes_no_model_is_refused_in_one_line(tiny_model: Any, tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text((tiny_model.folder / "config.json").read_text().replace('"gelu"', '"nonsense"'))
    shutil.copy(tiny_model.folder / "model.safetensors", tmp_path)
    recipe = dataclasses.replace(read_recipe(tiny_model.folder), transformer_folder=tmp_path)
    with pytest.raises(ModelError, match=r"^model: cannot be used \(KeyError: 'nonsense'\); give the model as it was saved$"):
        load_transformer(recipe, 2, "none", torch.float32)


def test_weights_left_out_are_one_line(tiny_model: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO):
        load_transformer(read_recipe(tiny_model.folder), 1, "none", torch.float32)
    assert [record.name for record in caplog.records] == ["embedder.model.loading"]
    assert caplog.messages[0].startswith("model: 1 of 4 layers built, ")
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_only_where_the_hardware_has_it(native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if native else (7, 5))
    assert resolve_dtype("auto", "cpu", "bert") == resolve_dtype("auto", "cuda:0", "gemma3_text") == expected


def test_gemma_never_runs_in_float16() -> None:
    with pytest.raises(ConfigError, match=r"compute.dtype=float16: family 'gemma3_text'"):
        resolve_dtype("float16", "cuda", "gemma3_text")
    assert resolve_dtype("float16", "cuda", "bert") == torch.float16


def test_transformers_own_verbosity_is_given_back(tiny_model: Any) -> None:
    before = loading.transformers_logging.get_verbosity()
    load_transformer(read_recipe(tiny_model.folder), 1, "none", torch.float32)
    assert loading.transformers_logging.get_verbosity() == before
