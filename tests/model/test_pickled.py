"""Pickled weights give the vectors of the same weights in safetensors, and a pickle that is more than tensors is refused unrun."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.base.modules import Dense

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.model.resolve import resolve_model
from tests.model.conftest import TinyModel


class Runs:
    """Runs a command when it is unpickled by Python."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def pickle_weights(folder: Path, num_files: int = 1) -> None:
    """Replace model.safetensors by pytorch_model.bin, or by numbered files and their index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = [names[start::num_files] for start in range(num_files)]
    stem = "pytorch_model" if num_files == 1 else "pytorch_model-{:05d}"
    for number, shard in enumerate(shards):
        torch.save({name: weights[name] for name in shard}, folder / f"{stem.format(number)}.bin")
    if num_files > 1:
        found = {name: f"{stem.format(number)}.bin" for number, shard in enumerate(shards) for name in shard}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": found}))


def refuse(folder: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())
    return str(refused.value)


@pytest.mark.parametrize("num_files", [1, 2])
def test_pickled_weights_give_the_same_vectors(num_files: int, folder: Path, tiny_model: TinyModel, texts: list[str]) -> None:
    pickle_weights(folder, num_files)
    pickled, ids = TinyModel(folder, "bert"), tiny_model.tokenize(texts)
    assert pickled.resolve().spec.model_checksum != tiny_model.resolve().spec.model_checksum, "the pickled file is hashed"
    for depth in (2, 4):
        np.testing.assert_array_equal(
            pickled.load(depth=depth).encode(ids, 512).vectors_ND, tiny_model.load(depth=depth).encode(ids, 512).vectors_ND
        )


def test_a_pickled_dense_module_gives_the_same_vectors(save_model: Callable[..., TinyModel], texts: list[str]) -> None:
    model = save_model("bert", Dense(64, 32))
    ids = model.tokenize(texts)
    expected = model.load().encode(ids, 512).vectors_ND
    before = model.resolve().spec.model_checksum
    pickle_weights(model.folder / "2_Dense")
    assert before != model.resolve().spec.model_checksum
    np.testing.assert_array_equal(model.load().encode(ids, 512).vectors_ND, expected)


def test_safetensors_come_first_and_a_pickle_beside_them_changes_nothing(folder: Path, tiny_model: TinyModel) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"damaged")
    assert TinyModel(folder, "bert").resolve().spec.model_checksum == tiny_model.resolve().spec.model_checksum


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_with_code_is_refused_by_name_and_not_run(is_zip: bool, folder: Path, tmp_path: Path) -> None:
    pickle_weights(folder)
    path, ran = folder / "pytorch_model.bin", tmp_path / "ran"
    if is_zip:
        torch.save({"embeddings": Runs(ran)}, path)
    else:
        path.write_bytes(pickle.dumps({"embeddings": Runs(ran)}, protocol=2))
    assert "pytorch_model.bin: holds more than tensors, which is not loaded" in refuse(folder)
    assert not ran.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def add_number(path: Path) -> None:
    torch.save(torch.load(path) | {"epoch": 3}, path)


def rewrite_as_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "none")


@pytest.mark.parametrize(
    ("change", "named"),
    [(cut, "damaged"), (rewrite_as_archive, "damaged"), (add_number, "'epoch' is not a tensor"), (Path.unlink, "no model.safetensors in")],
)
def test_damaged_pickles_are_refused_by_name(change: Callable[[Path], None], named: str, folder: Path) -> None:
    pickle_weights(folder)
    change(folder / "pytorch_model.bin")
    assert named in refuse(folder)


def test_an_index_of_pickles_names_a_missing_file(folder: Path) -> None:
    pickle_weights(folder, 2)
    (folder / "pytorch_model-00001.bin").unlink()
    assert "pytorch_model.bin.index.json: pytorch_model-00001.bin not found (1 of 2 files missing)" in refuse(folder)
