"""Maps out of shallow depths: the regression is exact where it can be, and the same however the sample comes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.calibrate.ridge import MOST_FEATURES, Features, Sums, choose_layers, measure_fidelity, nearest_rows, unit
from embedder.calibrate.run import check_memory
from embedder.core.errors import ConfigError
from embedder.model.exits import NUM_POOLINGS

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(400, 12)).astype(np.float32)
MAP = RNG.normal(size=(12, 5)).astype(np.float32)


def summed(states: np.ndarray, vectors: np.ndarray, sizes: list[int]) -> Sums:
    sums = Sums(states.shape[1], vectors.shape[1])
    for features, targets in zip(np.split(states, sizes), np.split(vectors, sizes), strict=True):
        sums.add(features, targets)
    return sums


def test_an_exact_linear_map_is_recovered_also_with_an_offset() -> None:
    vectors = STATES @ MAP + np.arange(5, dtype=np.float32)
    [(strength, line)] = summed(STATES, vectors, [100, 101, 350]).fit(np.arange(12), [1e-9])
    assert strength == 1e-9
    np.testing.assert_allclose(line.weight_FW, MAP, atol=1e-5)
    np.testing.assert_allclose(line.bias_W, np.arange(5), atol=1e-5)


def test_streamed_sums_equal_the_direct_solution() -> None:
    states, vectors = STATES * np.linspace(0.1, 30, 12, dtype=np.float32) + 2, unit(STATES @ MAP + RNG.normal(size=(400, 5)))
    strength = 0.05
    [(_, line)] = summed(states, vectors.astype(np.float32), [7, 300]).fit(np.arange(12), [strength])
    mean, deviation = states.mean(axis=0, dtype=np.float64), states.std(axis=0, dtype=np.float64)
    standard = (states - mean) / deviation
    # ridge as least squares on augmented rows
    rows = np.vstack([standard, np.sqrt(strength * len(states)) * np.eye(12)])
    targets = np.vstack([vectors - vectors.mean(axis=0), np.zeros((12, 5))])
    weight = np.linalg.lstsq(rows, targets)[0]
    np.testing.assert_allclose(line.apply(states), standard @ weight + vectors.mean(axis=0), atol=1e-4)


def test_a_map_of_some_layers_is_the_map_fitted_on_these_alone() -> None:
    vectors, places = STATES @ MAP, np.array([0, 1, 6, 7, 8])
    [(_, some)] = summed(STATES, vectors, [200]).fit(places, [0.01])
    [(_, alone)] = summed(STATES[:, places], vectors, [200]).fit(np.arange(5), [0.01])
    np.testing.assert_allclose(some.weight_FW, alone.weight_FW, atol=1e-6)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    states = STATES.copy()
    states[:, 3] = 0.25
    [(_, line)] = summed(states, states @ MAP, [50]).fit(np.arange(12), [1e-6])
    assert np.isfinite(line.weight_FW).all()
    np.testing.assert_allclose(line.apply(states), states @ MAP, atol=1e-3)


@given(st.integers(1, 48), st.sampled_from([384 * 2, 768 * 2, 1024 * 2, 4096 * 2]))
def test_a_map_reads_its_own_depth_and_the_embedding_layer_and_never_too_much(depth: int, block: int) -> None:
    layers = choose_layers(depth, block)
    assert layers[0] == 0
    assert layers[-1] == depth
    assert list(layers) == sorted(set(layers))
    assert len(layers) * block <= max(MOST_FEATURES, 2 * block)
    if (depth + 1) * block <= MOST_FEATURES:
        assert layers == tuple(range(depth + 1))


def test_fidelity_is_one_for_the_full_model_itself_and_near_chance_for_noise() -> None:
    vectors = unit(RNG.normal(size=(300, 16)).astype(np.float32))
    same = measure_fidelity(vectors, vectors)
    assert same.cosine == pytest.approx(1, abs=1e-6)
    assert same.overlap == 1
    noise = measure_fidelity(unit(RNG.normal(size=(300, 16)).astype(np.float32)), vectors)
    assert abs(noise.cosine) < 0.1
    assert noise.overlap < 0.1


def test_the_nearest_are_found_without_the_row_itself() -> None:
    line = np.stack([np.cos(np.arange(6) / 10), np.sin(np.arange(6) / 10)], axis=1).astype(np.float32)
    assert [sorted(each) for each in nearest_rows(line, line, 2).tolist()] == [[1, 2], [0, 2], [1, 3], [2, 4], [3, 5], [3, 4]]


@pytest.mark.parametrize("places", [np.arange(12), np.array([0, 1, 2, 6, 7, 8]), np.array([3, 5, 7, 11])], ids=["all", "blocks", "some"])
def test_sums_by_blocks_are_those_of_all_features(places: np.ndarray) -> None:
    vectors, pairs = STATES @ MAP, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
    by_blocks = Sums(12, 5, pairs, 3)
    by_blocks.add(STATES[:150], vectors[:150])
    by_blocks.add(STATES[150:], vectors[150:])
    whole = summed(STATES, vectors, [])
    np.testing.assert_allclose(by_blocks.gram(places), whole.gram(places), rtol=1e-12)
    np.testing.assert_allclose(by_blocks.spread(places).deviation_F, STATES[:, places].std(axis=0), rtol=1e-5)
    lines = [next(sums.fit(places, [0.1]))[1] for sums in (by_blocks, whole)]
    np.testing.assert_allclose(lines[0].weight_FW, lines[1].weight_FW, rtol=1e-6)


@given(st.integers(2, 40), st.sampled_from([384, 768, 1024]), st.data())
def test_every_pair_of_layers_that_a_map_reads_is_summed_and_no_other(num_layers: int, size: int, data: st.DataObject) -> None:
    depths = data.draw(st.sets(st.integers(1, num_layers), min_size=1))
    layers = {depth: choose_layers(depth, NUM_POOLINGS * size) for depth in depths}
    tapped = tuple(sorted({layer for each in layers.values() for layer in each}))
    pairs = {(tapped[first], tapped[second]) for first, second in Features(layers, tapped, size).pairs}
    assert pairs == {(first, second) for each in layers.values() for first in each for second in each if first <= second}


def test_wide_and_deep_models_are_summed_in_a_fraction_of_all_products() -> None:
    layers = {depth: choose_layers(depth, NUM_POOLINGS * 1024) for depth in range(1, 24)}
    features = Features(layers, tuple(range(24)), 1024)
    assert features.sum_bytes < 15e9 < 8 * (24 * features.block) ** 2 / 4
    with pytest.raises(ConfigError, match=r"23 maps take 1\d.\d GB to fit, this machine has 8.0; name fewer depths"):
        check_memory(features, 8_000_000_000)
    check_memory(features, 20_000_000_000)
