"""One pass that taps every depth gives what an encoder really cut there gives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.base.modules import Dense

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.spec import Pooling
from embedder.model.attention_pooling import LEAD_TOKENS, start_attention_pooling
from embedder.model.encoder import Encoder
from embedder.model.exits import ExitPooler
from embedder.model.files.recipe import read_recipe
from embedder.model.pooling import Head, finish_states, load_steps
from embedder.model.resolve import resolve_model
from tests.model.conftest import CONFIGS, tokenize
from tests.model.test_exits import WEIGHING

DEPTHS = (1, 2, 3, 4)
PRE_NORM = ("modernbert", "qwen3", "gemma3_text")


def assert_taps_are_cut_encoders(model: Any, texts: list[str], **embedding: Any) -> None:
    ids = model.tokenize(texts)
    full = model.resolve(**embedding).spec
    tapped = Encoder.load(full, dtype="float32").tap(ids, 512, DEPTHS)
    head = Head(load_steps(read_recipe(model.folder).steps), full)
    for depth in DEPTHS:
        cut = Encoder.load(full.model_copy(update={"depth": depth}), dtype="float32").encode(ids, 512).vectors_ND
        np.testing.assert_allclose(finish_states(tapped[depth], head), cut, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_tapped_depth_is_the_encoder_cut_there(family: str, tiny_models: Callable[[str], Any], texts: list[str]) -> None:
    assert_taps_are_cut_encoders(tiny_models(family), texts, dim=32)


@pytest.mark.parametrize("final_norm", ["apply", "skip"])
@pytest.mark.parametrize("family", PRE_NORM)
def test_the_final_norm_is_applied_or_skipped_at_every_tap(
    family: str, final_norm: str, tiny_models: Callable[[str], Any], texts: list[str]
) -> None:
    model = tiny_models(family)
    assert_taps_are_cut_encoders(model, texts, final_norm=final_norm)
    other = {"apply": "skip", "skip": "apply"}[final_norm]
    ids = model.tokenize(texts[:3])
    here, there = (model.load(final_norm=norm).tap(ids, 512, [2])[2] for norm in (final_norm, other))
    assert np.abs(here - there).max() > 1e-2


def test_dense_modules_follow_a_tapped_state(save_model: Callable[..., Any], texts: list[str]) -> None:
    assert_taps_are_cut_encoders(save_model("bert", Dense(64, 48, bias=True, activation_function=torch.nn.Tanh())), texts, dim=16)


def test_depth_0_is_the_embedding_layers_output(tiny_model: Any, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    tapped = tiny_model.load(pooling="mean").tap(ids, 512, [0, 4])
    reference = tiny_model.reference()[0].auto_model
    with torch.inference_mode():
        hidden = [reference(torch.tensor([row]), output_hidden_states=True).hidden_states for row in ids.to_pylist()]
    for depth in (0, 4):
        expected = np.stack([states[depth][0].mean(dim=0).numpy() for states in hidden])
        np.testing.assert_allclose(tapped[depth], expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_an_exit_reads_the_mean_the_gathering_token_and_means_by_the_queries_of_the_layer(
    tiny_model: Any, texts: list[str], pooling: Pooling
) -> None:
    ids = tiny_model.tokenize(texts)
    tapped = tiny_model.load(pooling=pooling).tap(ids, 512, [0, 3], WEIGHING)
    reference = tiny_model.reference()[0].auto_model
    for row in (0, 7):
        with torch.inference_mode():
            layers = reference(torch.tensor([ids[row].as_py()]), output_hidden_states=True).hidden_states
        for depth, pooled in tapped.items():
            states_LH = layers[depth][0].numpy()
            mean, gathered, *learned = np.split(pooled[row], WEIGHING.num_poolings)
            np.testing.assert_allclose(mean, states_LH.mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(gathered, states_LH[-1 if pooling == "last" else 0], atol=1e-5)
            log_rarity_L, ones_L = np.log(WEIGHING.token_weights_V[ids[row].as_py()] + 0.1), np.ones(len(states_LH))
            read_LX = np.column_stack([states_LH, log_rarity_L, np.arange(len(states_LH)) / LEAD_TOKENS, ones_L])
            for query_X, learned_H in zip(WEIGHING.queries_TQX[depth], learned, strict=True):
                np.testing.assert_allclose(learned_H, np.average(states_LH, axis=0, weights=np.exp(read_LX @ query_X)), atol=1e-4)
    assert ExitPooler(pooling, WEIGHING).own == (0 if pooling == "mean" else 1)


def test_the_starting_queries_weigh_by_rarity_and_lean_to_the_beginning_and_the_end(tiny_model: Any, texts: list[str]) -> None:
    ids, encoder = tiny_model.tokenize(texts), tiny_model.load()
    start = start_attention_pooling(WEIGHING.token_weights_V, 4, 64)
    means = np.split(encoder.tap(ids, 512, [2], start)[2][0], start.num_poolings)[2:]
    with torch.inference_mode():
        states_LH = (
            tiny_model.reference()[0].auto_model(torch.tensor([ids[0].as_py()]), output_hidden_states=True).hidden_states[2][0].numpy()
        )
    rarity_L, places_L = start.token_weights_V[ids[0].as_py()] + 0.1, np.arange(len(states_LH)) / LEAD_TOKENS
    for mean_H, weights_L in zip(means, (rarity_L, np.exp(-places_L), rarity_L**2, np.exp(places_L / 2)), strict=True):
        np.testing.assert_allclose(mean_H, np.average(states_LH, axis=0, weights=weights_L), atol=1e-4)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_queries_leave_finite_states(tiny_model: Any, texts: list[str], layout: Any, scale: float) -> None:
    encoder = Encoder.load(tiny_model.resolve().spec, dtype="float32", layout=layout)
    extreme = replace(WEIGHING, queries_TQX=WEIGHING.queries_TQX * np.float32(scale))
    states_NF = encoder.tap_exits(tiny_model.tokenize(texts), 512, (0, 4), (), extreme).states_NF
    np.testing.assert_allclose(np.linalg.norm(states_NF.reshape(-1, 64), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_an_exit_reads_the_same_of_a_text_whatever_is_beside_it(tiny_model: Any, texts: list[str], layout: Any) -> None:
    encoder, ids = Encoder.load(tiny_model.resolve().spec, dtype="float32", layout=layout), tiny_model.tokenize(texts)
    alone, together = (encoder.tap_exits(ids, budget, (0, 1, 4), (), WEIGHING).states_NF for budget in (1, 8192))
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_taps_leave_the_encoder_as_it_was(tiny_encoder: Encoder, tiny_model: Any, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    before = tiny_encoder.encode(ids, 512).vectors_ND
    tiny_encoder.tap(ids, 512, [1, 2])
    np.testing.assert_array_equal(tiny_encoder.encode(ids, 512).vectors_ND, before)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in tiny_encoder.layers)


def test_threads_that_share_the_batches_tap_the_same(tiny_encoder: Encoder, tiny_model: Any, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    alone = tiny_encoder.tap(ids, 64, DEPTHS)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = tiny_encoder.tap(ids, 64, DEPTHS)
    finally:
        torch.set_num_threads(threads)
    for depth in DEPTHS:
        np.testing.assert_allclose(shared[depth], alone[depth], atol=1e-6)


def test_the_real_minilm_taps_what_its_cut_encoders_give(minilm: str) -> None:
    texts = [f"{name} is the {number}th module of the library, read it well" for number, name in enumerate(dir(torch)[:40])]
    full = resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig())
    ids = tokenize(full, texts)
    tapped = Encoder.load(full.spec, dtype="float32").tap(ids, 512, [1, 3, 6])
    head = Head(load_steps(()), full.spec)
    for depth, states in tapped.items():
        cut = Encoder.load(full.spec.model_copy(update={"depth": depth}), dtype="float32").encode(ids, 512).vectors_ND
        np.testing.assert_allclose(finish_states(states, head), cut, atol=1e-5)
