"""Poolings side by side equal sentence-transformers, whose order and widths they have."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers.base.modules import Dense
from torch import nn

from embedder.calibrate.run import resolve_whole
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import peek_model, read_recipe
from embedder.model.model_report import describe_model
from embedder.model.pooling import Head, finish_states, load_steps
from embedder.search.query_encoder import QueryEncoder
from tests.model.conftest import TinyModel, tokenize
from tests.model.test_encoder import seeded

MODES = ("lasttoken", "mean", "cls", "max", "weightedmean", "mean_sqrt_len_tokens")
Save = Callable[..., TinyModel]


@pytest.fixture(scope="module")
def model(save_model: Save) -> TinyModel:
    return save_model("bert", pooling=MODES)


@pytest.fixture(scope="module")
def texts(texts: list[str]) -> list[str]:
    """Six texts; the longest exceeds the limit of tokens."""
    return [*texts[:5], max(texts, key=len)]


def assert_equal(vectors_ND: np.ndarray, expected_ND: np.ndarray) -> None:
    assert vectors_ND.shape == expected_ND.shape
    assert ((vectors_ND * expected_ND).sum(1) / np.linalg.norm(vectors_ND, axis=1) / np.linalg.norm(expected_ND, axis=1)).min() >= 0.99999
    np.testing.assert_allclose(vectors_ND, expected_ND, rtol=1e-5, atol=1e-5)


def test_vectors_equal_sentence_transformers_padded_packed_and_tapped(model: TinyModel, texts: list[str]) -> None:
    spec, ids, expected = model.resolve(normalize=False).spec, model.tokenize(texts), model.reference().encode(texts)
    assert (spec.pooling, spec.dim) == ("last+mean+cls+max+weightedmean+mean_sqrt_len", 6 * 64)
    for layout in ("padded", "packed"):
        assert_equal(Encoder.load(spec, dtype="float32", layout=layout).encode(ids, 512).vectors_ND, expected)
    assert_equal(Encoder.load(spec, dtype="float32").tap(ids, 512, [2, 4])[4], expected)
    rounded = Encoder.load(spec, dtype="bfloat16").encode(ids, 512).vectors_ND
    assert ((rounded * expected).sum(1) / np.linalg.norm(rounded, axis=1) / np.linalg.norm(expected, axis=1)).min() >= 0.99


@pytest.mark.real
def test_openvino_gives_the_same(model: TinyModel, texts: list[str]) -> None:
    spec, ids = model.resolve().spec, model.tokenize(texts)
    converted = Encoder.load(spec, dtype="float32", backend="openvino")
    assert_equal(converted.encode(ids, 512).vectors_ND, model.reference().encode(texts, normalize_embeddings=True))


@pytest.mark.parametrize("family", ["bert", "qwen3", "mpnet"])
def test_modules_depths_and_dims_follow_the_wider_state(family: str, save_model: Save, texts: list[str]) -> None:
    model = save_model(family, seeded(Dense(128, 48)), pooling=("cls", "mean"))
    spec, ids = model.resolve(dim=16).spec, model.tokenize(texts)
    theirs = model.reference()
    theirs.truncate_dim = 16
    assert_equal(Encoder.load(spec, dtype="float32").encode(ids, 512).vectors_ND, theirs.encode(texts, normalize_embeddings=True))
    assert_equal(QueryEncoder(spec).encode(texts[:3]), theirs.encode(texts[:3], normalize_embeddings=True))
    tapped = Encoder.load(spec, dtype="float32").tap(ids, 512, [2])[2]
    cut = Encoder.load(spec.model_copy(update={"depth": 2}), dtype="float32").encode(ids, 512).vectors_ND
    assert_equal(finish_states(tapped, Head(load_steps(read_recipe(model.folder).steps), spec)), cut)
    if family == "bert":
        layers = theirs[0].auto_model.encoder
        layers.layer = nn.ModuleList(layers.layer[:2])
        assert_equal(cut, theirs.encode(texts, normalize_embeddings=True))
    assert peek_model(str(model.folder), None) == (4, 48)


def test_flags_of_earlier_versions_are_put_in_their_order_and_leave_out_the_prompt(
    model: TinyModel, texts: list[str], tmp_path: Path
) -> None:
    old = TinyModel(Path(shutil.copytree(model.folder, tmp_path / "old")), "bert")
    flags = dict.fromkeys(("pooling_mode_mean_tokens", "pooling_mode_max_tokens", "pooling_mode_cls_token"), True)
    (old.folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, "include_prompt": False} | flags))
    resolved = old.resolve(prompt="the cat ", normalize=False)
    assert resolved.spec.pooling == "cls+max+mean"
    vectors = Encoder.load(resolved.spec, dtype="float32").encode(tokenize(resolved, texts), 512).vectors_ND
    assert_equal(vectors, old.reference().encode(texts, prompt="the cat "))


def test_settings_for_one_pooling_are_refused_by_name(model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedding\.pooling='mean': .* has last\+mean\+cls\+max.*, side by side; leave it out"):
        model.resolve(pooling="mean")
    with pytest.raises(ConfigError, match=r"embedding\.pooling='last\+mean.*: calibrations are for mean, cls, last only"):
        resolve_whole(EmbeddingConfig(model=str(model.folder)), ChunkingConfig())
    without = shutil.copytree(model.folder, tmp_path / "without")
    config: dict[str, Any] = {"embedding_dimension": 64, "pooling_mode": ["cls", "weightedmean"], "include_prompt": False}
    (without / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"embedding\.pooling='cls\+weightedmean': .* leaves the prompt out of pooling"):
        TinyModel(without, "bert").resolve(prompt="the ")


def test_the_report_shows_them(model: TinyModel) -> None:
    report = describe_model(str(model.folder), None)
    assert (report["pooling"], report["components"]) == ("last+mean+cls+max+weightedmean+mean_sqrt_len", 384)
