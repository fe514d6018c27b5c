"""Neurons that matter least are left out of every family's feed-forward blocks, and the others make up for them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from embedder.core.errors import ModelError
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.calibration import Calibration, ExitMap, fitted_for, load_calibration, write_calibration
from embedder.model.encoder import Encoder
from embedder.model.files.model_config import load_config
from embedder.model.files.recipe import find_recipe
from embedder.model.neurons import KeptNeurons
from embedder.model.pruning import BlockMoments, count_kept, find_block, moment_bytes
from tests.model.conftest import CONFIGS, TinyModel

SIZE = 80
"""Neurons of a block: neither this nor its double is a size of attention."""
WEIGHING = start_attention_pooling(np.ones(64, np.float32), 4, 64)


@pytest.fixture
def make(save_model: Callable[..., TinyModel], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TinyModel]:
    def make(family: str, size: int = SIZE) -> TinyModel:
        name, settings = CONFIGS[family]
        (entry,) = {"intermediate_size", "hidden_dim", "d_ff"} & set(settings)
        monkeypatch.setitem(CONFIGS, family, (name, settings | {entry: size}))
        return save_model(family)

    return make


def measure(model: TinyModel, encoder: Encoder, token_ids: pa.ListArray, count: int, token_budget: int = 512) -> BlockMoments:
    moments = BlockMoments(encoder.layers, load_config(find_recipe(model.resolve().spec)), count)
    for hooked in (moments.choosing, moments.measuring):
        with hooked():
            encoder.tap_exits(token_ids, token_budget, (4,), (), WEIGHING, moments.watch)
    return moments


def silence(encoder: Encoder, model: TinyModel) -> None:
    """Zero the output weights of every other neuron: it has no effect."""
    config = load_config(find_recipe(model.resolve().spec))
    for layer in encoder.layers:
        find_block(layer, config)[1].weight.data[:, ::2] = 0


@pytest.mark.parametrize("family", CONFIGS)
def test_neurons_without_effect_are_those_left_out(family: str, make: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = make(family)
    token_ids, encoder = model.tokenize(texts), model.load()
    silence(encoder, model)
    kept = measure(model, encoder, token_ids, SIZE // 2).fit()
    assert kept.places_LK.tolist() == [list(range(1, SIZE, 2))] * 4
    pruned = Encoder.load(model.resolve().spec, dtype="float32", neurons=kept)
    sizes = {tuple(each.weight.shape) for layer in pruned.layers for each in layer.modules() if isinstance(each, torch.nn.Linear)}
    assert (64, SIZE // 2) in sizes
    assert (64, SIZE) not in sizes
    np.testing.assert_allclose(pruned.encode(token_ids, 512).vectors_ND, encoder.encode(token_ids, 512).vectors_ND, atol=2e-5)


@pytest.mark.parametrize("family", ["bert", "gte", "qwen3"])
def test_output_weights_fitted_again_come_closer_than_those_there_were(
    family: str, make: Callable[[str], TinyModel], texts: list[str]
) -> None:
    model = make(family)
    token_ids, encoder = model.tokenize(texts), model.load()
    fitted = measure(model, encoder, token_ids, 40).fit()
    config = load_config(find_recipe(model.resolve().spec))
    outers = [find_block(layer, config)[1] for layer in encoder.layers]
    as_before = replace(
        fitted,
        weight_LKH=np.stack([outer.weight.T.numpy()[places] for outer, places in zip(outers, fitted.places_LK, strict=True)]),
        bias_LH=np.stack([np.zeros(64, np.float32) if outer.bias is None else outer.bias.numpy() for outer in outers]),
    )
    full_ND = encoder.encode(token_ids, 512).vectors_ND
    near = [
        float((Encoder.load(model.resolve().spec, dtype="float32", neurons=each).encode(token_ids, 512).vectors_ND * full_ND).sum(1).mean())
        for each in (fitted, as_before)
    ]
    assert near[1] < near[0] < 0.9999


def test_padding_counts_for_nothing(make: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = make("bert")
    encoder, token_ids = model.load(), model.tokenize(texts)
    together, alone = (measure(model, encoder, token_ids, 40, token_budget) for token_budget in (512, 1))
    for places, others, one, other in zip(together.places, alone.places, together.moments, alone.moments, strict=True):
        assert torch.equal(places, others)
        assert one[40, 40] == other[40, 40] == len(token_ids.values)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)
    assert sum(each.nbytes for each in together.moments) < moment_bytes(load_config(find_recipe(model.resolve().spec)), 4, 40)


def test_moments_of_the_neurons_kept_fit_as_all_neurons_do(make: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = make("bert")
    encoder, token_ids = model.load(), model.tokenize(texts)
    fitted, whole = (measure(model, encoder, token_ids, count) for count in (40, SIZE))
    kept, block = fitted.fit(), whole.outers[0]
    moments_XX, rows = whole.moments[0][:, : SIZE + 1].double(), [*kept.places_LK[0].tolist(), SIZE]
    weight_XH = torch.cat([block.weight.T, block.bias[None]]).double()
    ridge = 1e-3 * moments_XX[rows][:, rows].diagonal().mean()
    by_all = torch.linalg.solve(
        moments_XX[rows][:, rows] + ridge * torch.eye(41, dtype=torch.float64), moments_XX[rows] @ weight_XH + ridge * weight_XH[rows]
    )
    np.testing.assert_allclose(np.vstack([kept.weight_LKH[0], kept.bias_LH[0]]), by_all, atol=1e-4)


def test_blocks_that_sizes_do_not_tell_from_attention_are_refused(make: Callable[..., TinyModel]) -> None:
    model = make("bert", 64)  # as wide as its queries, keys and values
    encoder = model.load()
    with pytest.raises(ModelError, match=r"calibrate\.feed_forward: the layers of family 'bert' \(64 neurons, 64 components\) have no"):
        BlockMoments(encoder.layers, load_config(find_recipe(model.resolve().spec)), 32)


def test_large_blocks_keep_a_multiple_of_64_neurons() -> None:
    def config(size: int) -> object:
        return type("Config", (), {"model_type": "bert", "intermediate_size": size})()

    assert [count_kept(config(1536), share) for share in (0.5, 0.26, 0.001, 1.0)] == [768, 384, 64, 1536]
    assert [count_kept(config(80), share) for share in (0.5, 0.001)] == [40, 1]


@pytest.fixture
def pruned_calibration(make: Callable[[str], TinyModel], texts: list[str]) -> tuple[TinyModel, Calibration]:
    model = make("bert")
    kept = measure(model, model.load(), model.tokenize(texts), 20).fit()
    draw = np.random.default_rng(0)
    weight, bias = draw.normal(size=(3 * WEIGHING.num_poolings * 64, 64)).astype(np.float32), np.zeros(64, np.float32)
    return model, Calibration(fitted_for(model.resolve().spec), 4, WEIGHING, {4: ExitMap((0, 2, 4), weight, bias)}, {}, neurons=kept)


def test_an_exit_runs_the_neurons_of_its_calibration_and_a_native_exit_all(
    pruned_calibration: tuple[TinyModel, Calibration], texts: list[str], tmp_path: object
) -> None:
    model, calibration = pruned_calibration
    write_calibration(calibration, f"{tmp_path}/artifact")
    loaded = load_calibration(f"{tmp_path}/artifact")
    assert loaded.fingerprint == calibration.fingerprint
    assert loaded.fingerprint != replace(calibration, neurons=None).fingerprint
    resolved = model.resolve(calibration=f"{tmp_path}/artifact")
    assert (resolved.spec.depth, resolved.spec.exit, resolved.spec.query_depth) == (4, "calibrated", 4)
    token_ids = model.tokenize(texts)
    encoder = Encoder.load(resolved.spec, dtype="float32", calibration=loaded)
    exit_map, by_hand = loaded.maps[4], Encoder.load(model.resolve().spec, dtype="float32", neurons=loaded.neurons)
    states_NF = by_hand.tap_exits(token_ids, 512, exit_map.layers, (), WEIGHING).states_NF
    mapped_NW = states_NF @ exit_map.weight_FW
    expected_NW = mapped_NW / np.linalg.norm(mapped_NW, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(token_ids, 512).vectors_ND, expected_NW, atol=1e-4)
    native = model.resolve(calibration=None).spec
    all_of_them = Encoder.load(native, dtype="float32", calibration=loaded).layers[0].intermediate.dense.out_features
    assert (all_of_them, encoder.layers[0].intermediate.dense.out_features) == (SIZE, 20)


def test_openvino_runs_the_same_neurons(pruned_calibration: tuple[TinyModel, Calibration], texts: list[str], tmp_path: object) -> None:
    pytest.importorskip("openvino")
    model, calibration = pruned_calibration
    write_calibration(calibration, f"{tmp_path}/artifact")
    spec, token_ids = model.resolve(calibration=f"{tmp_path}/artifact").spec, model.tokenize(texts)
    vectors = [
        Encoder.load(spec, dtype="float32", calibration=calibration, backend=backend).encode(token_ids, 512).vectors_ND
        for backend in ("torch", "openvino")
    ]
    np.testing.assert_allclose(*vectors, atol=2e-4)


def test_the_arrays_of_kept_neurons_are_read_back() -> None:
    kept = KeptNeurons(np.zeros((2, 3), np.int32), np.ones((2, 3, 4), np.float32), np.zeros((2, 4), np.float32))
    read = KeptNeurons.of(kept.tensors())
    assert read is not None
    for mine, theirs in zip(kept.tensors().values(), read.tensors().values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert KeptNeurons.of({}) is None
