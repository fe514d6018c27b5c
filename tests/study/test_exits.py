"""Maps out of shallow depths: the regression is exact where it can be, and the same however the sample comes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.study.exits import MOST_FEATURES, Sums, choose_layers, measure_fidelity, nearest_rows, unit

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
