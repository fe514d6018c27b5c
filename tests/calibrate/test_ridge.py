"""Ridge maps are exact where they can be, and do not depend on how the sample is batched."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.calibrate.ridge import MOST_FEATURES, Features, Sums, choose_layers
from embedder.calibrate.run import check_memory
from embedder.core.errors import ConfigError
from embedder.core.fidelity import unit
from embedder.model.exits import NUM_POOLINGS

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(400, 12)).astype(np.float32)
MAP = RNG.normal(size=(12, 5)).astype(np.float32)


def summed(states: np.ndarray, vectors: np.ndarray, sizes: list[int]) -> Sums:
    sums = Sums(1, states.shape[1], vectors.shape[1])
    for features, targets in zip(np.split(states, sizes), np.split(vectors, sizes), strict=True):
        sums.add(features, targets)
    return sums


def test_an_exact_affine_map_is_recovered() -> None:
    vectors = STATES @ MAP + np.arange(5, dtype=np.float32)
    [(strength, fitted)] = summed(STATES, vectors, [100, 101, 350]).fit([0], [1e-9])
    assert strength == 1e-9
    np.testing.assert_allclose(fitted.weight_FW, MAP, atol=1e-5)
    np.testing.assert_allclose(fitted.bias_W, np.arange(5), atol=1e-5)


def test_streamed_sums_equal_the_direct_solution() -> None:
    states, vectors = STATES * np.linspace(0.1, 30, 12, dtype=np.float32) + 2, unit(STATES @ MAP + RNG.normal(size=(400, 5)))
    strength = 0.05
    [(_, fitted)] = summed(states, vectors.astype(np.float32), [7, 300]).fit([0], [strength])
    mean, deviation = states.mean(axis=0, dtype=np.float64), states.std(axis=0, dtype=np.float64)
    standard = (states - mean) / deviation
    # ridge as least squares on augmented rows
    rows = np.vstack([standard, np.sqrt(strength * len(states)) * np.eye(12)])
    targets = np.vstack([vectors - vectors.mean(axis=0), np.zeros((12, 5))])
    weight = np.linalg.lstsq(rows, targets)[0]
    np.testing.assert_allclose(fitted.apply(states), standard @ weight + vectors.mean(axis=0), atol=1e-4)


def test_a_constant_feature_does_not_affect_the_map() -> None:
    states = STATES.copy()
    states[:, 3] = 0.25
    [(_, fitted)] = summed(states, states @ MAP, [50]).fit([0], [1e-6])
    assert np.isfinite(fitted.weight_FW).all()
    np.testing.assert_allclose(fitted.apply(states), states @ MAP, atol=1e-3)


@pytest.mark.parametrize("blocks", [[0, 1, 2, 3], [0, 2], [1, 3]], ids=str)
def test_a_map_of_some_blocks_equals_the_map_fitted_on_their_features_alone(blocks: list[int]) -> None:
    vectors, pairs = STATES @ MAP, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
    by_blocks = Sums(4, 3, 5, pairs)
    by_blocks.add(STATES[:150], vectors[:150])
    by_blocks.add(STATES[150:], vectors[150:])
    states = np.hstack([np.hsplit(STATES, 4)[each] for each in blocks])
    np.testing.assert_allclose(by_blocks.mean_and_deviation(blocks)[1], states.std(axis=0), rtol=1e-5)
    some, alone = (next(sums.fit(numbers, [0.1]))[1] for sums, numbers in ((by_blocks, blocks), (summed(states, vectors, [200]), [0])))
    np.testing.assert_allclose(some.weight_FW, alone.weight_FW, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(some.bias_W, alone.bias_W, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 48), st.sampled_from([384 * 2, 768 * 2, 1024 * 2, 4096 * 2]))
def test_a_map_reads_the_embedding_layer_and_its_own_depth_within_the_feature_limit(depth: int, block: int) -> None:
    layers = choose_layers(depth, block)
    assert layers[0] == 0
    assert layers[-1] == depth
    assert list(layers) == sorted(set(layers))
    assert len(layers) * block <= max(MOST_FEATURES, 2 * block)
    if (depth + 1) * block <= MOST_FEATURES:
        assert layers == tuple(range(depth + 1))


@given(st.integers(2, 40), st.sampled_from([384, 768, 1024]), st.data())
def test_exactly_the_pairs_of_layers_that_maps_read_are_summed(num_layers: int, size: int, data: st.DataObject) -> None:
    depths = data.draw(st.sets(st.integers(1, num_layers), min_size=1))
    layers = {depth: choose_layers(depth, NUM_POOLINGS * size) for depth in depths}
    tapped = tuple(sorted({layer for each in layers.values() for layer in each}))
    pairs = {(tapped[first], tapped[second]) for first, second in Features(layers, tapped, size).pairs}
    assert pairs == {(first, second) for each in layers.values() for first in each for second in each if first <= second}


def test_wide_and_deep_models_take_a_fraction_of_the_memory_of_all_products() -> None:
    layers = {depth: choose_layers(depth, NUM_POOLINGS * 1024) for depth in range(1, 24)}
    features = Features(layers, tuple(range(24)), 1024)
    assert features.sum_bytes < 15e9 < 8 * (24 * features.block) ** 2 / 4
    with pytest.raises(ConfigError, match=r"23 maps take 1\d.\d GB to fit, this machine has 8.0; name fewer depths"):
        check_memory(features, 8_000_000_000)
    check_memory(features, 20_000_000_000)
