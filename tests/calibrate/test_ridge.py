"""Ridge maps are exact where they can be, and do not depend on how the sample is batched or on which side is solved."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.calibrate.ridge import MOST_FEATURES, ByFeatures, ByRows, Rows, choose_layers
from embedder.core.fidelity import unit

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(400, 12)).astype(np.float32)
MAP = RNG.normal(size=(12, 5)).astype(np.float32)

Store = Callable[..., Rows]


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return the function that stores a sample in units that end at the given places."""

    def stored(states: np.ndarray, vectors: np.ndarray, ends: Sequence[int], num_blocks: int = 1, weights: Sequence[float] = ()) -> Rows:
        rows = Rows(tmp_path_factory.mktemp("rows"), num_blocks, states.shape[1] // num_blocks, vectors.shape[1])
        units = zip(np.split(states, ends), np.split(vectors.astype(np.float32), ends), strict=True)
        for (features, targets), weight in zip(units, weights or [1.0] * (len(ends) + 1), strict=True):
            rows.add(features, targets, len(features), weight)
        return rows

    return stored


def solve_directly(states: np.ndarray, vectors: np.ndarray, strength: float, weight_N: np.ndarray) -> np.ndarray:
    """Predict all rows by ridge as least squares on augmented rows, in float64."""
    mean, mean_W = (np.average(each, axis=0, weights=weight_N) for each in (states, vectors))
    deviation = np.sqrt(np.average((states - mean) ** 2, axis=0, weights=weight_N))
    standard, root_N = (states - mean) / deviation, np.sqrt(weight_N)[:, None]
    rows = np.vstack([standard * root_N, np.sqrt(strength * weight_N.sum()) * np.eye(states.shape[1])])
    targets = np.vstack([(vectors - mean_W) * root_N, np.zeros((states.shape[1], vectors.shape[1]))])
    predicted: np.ndarray = standard @ np.linalg.lstsq(rows, targets)[0] + mean_W
    return predicted


def test_an_exact_affine_map_is_recovered(store: Store) -> None:
    vectors = STATES @ MAP + np.arange(5, dtype=np.float32)
    fitted = store(STATES, vectors, [100, 101, 350]).fit([0])(1e-9).make_map()
    np.testing.assert_allclose(fitted.weight_FW, MAP, atol=1e-5)
    np.testing.assert_allclose(fitted.bias_W, np.arange(5), atol=1e-5)


@pytest.mark.parametrize("num_rows", [400, 9], ids=["more chunks than features", "fewer"])
def test_stored_units_give_the_direct_solution(store: Store, num_rows: int) -> None:
    states = (STATES * np.linspace(0.1, 30, 12, dtype=np.float32) + 2)[:num_rows]
    vectors = unit(STATES @ MAP + RNG.normal(size=(400, 5)))[:num_rows]
    fitted = store(states, vectors, [3, 7]).fit([0])(0.05).make_map()
    np.testing.assert_allclose(fitted.apply(states), solve_directly(states, vectors, 0.05, np.ones(num_rows)), atol=1e-4)


@pytest.mark.parametrize("num_rows", [400, 9], ids=["more chunks than features", "fewer"])
def test_a_unit_of_weight_a_tenth_counts_as_a_tenth_of_each_chunk(store: Store, num_rows: int) -> None:
    states, vectors = STATES[:num_rows], (STATES @ MAP + RNG.normal(size=(400, 5)))[:num_rows]
    rows = store(states, vectors, [6], weights=[1.0, 0.1])
    weight_N = np.where(np.arange(num_rows) < 6, 1.0, 0.1)
    assert rows.weight == pytest.approx(weight_N.sum())
    fitted = rows.fit([0])(0.05).make_map()
    np.testing.assert_allclose(fitted.apply(states), solve_directly(states, vectors, 0.05, weight_N), atol=1e-4)
    alike = store(states, vectors, [6]).fit([0])(0.05).make_map()
    assert np.abs(alike.apply(states) - fitted.apply(states)).max() > 0.01


@pytest.mark.parametrize("num_rows", [5, 11, 12, 400])
def test_the_matrix_of_features_and_that_of_chunks_have_one_solution(store: Store, num_rows: int) -> None:
    states, vectors = STATES[:num_rows] + 3, (STATES @ MAP)[:num_rows]
    rows = store(states, vectors, [2, 4], num_blocks=4, weights=[1.0, 0.1, 1.0])
    strengths = (1e-3, 0.1, 3.0)
    for blocks in ([0, 1, 2, 3], [1, 3]):
        primal, dual = ByFeatures(rows), ByRows(rows)
        for system in (primal, dual):
            system.extend(blocks)
        solved = [[(system, system.solve(each)) for each in strengths] for system in (primal, dual)]
        np.testing.assert_allclose(*([system.weigh(each) for system, each in some] for some in solved), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("num_rows", [9, 300])
def test_a_solution_predicts_what_its_map_gives(store: Store, num_rows: int) -> None:
    rows = store(STATES[:num_rows], (STATES @ MAP)[:num_rows], [2, 4], num_blocks=4, weights=[1.0, 0.1, 1.0])
    rows.hold_out(STATES[300:])
    for blocks in ([0], [0, 2], [1, 3]):
        solution = rows.fit(blocks)(0.1)
        columns = np.concatenate([np.arange(3 * number, 3 * number + 3) for number in blocks])
        np.testing.assert_allclose(solution.predict(), solution.make_map().apply(STATES[300:][:, columns]), atol=1e-5)


@pytest.mark.parametrize("num_rows", [5, 400])
def test_maps_of_more_and_more_blocks_are_those_fitted_anew(store: Store, num_rows: int) -> None:
    sample = STATES[:num_rows], (STATES @ MAP)[:num_rows], [2, 4]
    rows = store(*sample, num_blocks=4)
    for blocks in ([0], [0, 1], [0, 1, 3], [0, 2, 3], [0, 2, 3]):
        kept, anew = rows.fit(blocks), store(*sample, num_blocks=4).fit(blocks)
        for strength in (0.1, 0.01, 0.1):
            np.testing.assert_allclose(kept(strength).make_map().weight_FW, anew(strength).make_map().weight_FW, rtol=1e-5, atol=1e-7)


def test_a_constant_feature_does_not_affect_the_map(store: Store) -> None:
    states = STATES.copy()
    states[:, 3] = 0.25
    fitted = store(states, states @ MAP, [50]).fit([0])(1e-6).make_map()
    assert np.isfinite(fitted.weight_FW).all()
    np.testing.assert_allclose(fitted.apply(states), states @ MAP, atol=1e-3)


@pytest.mark.parametrize("blocks", [[0, 1, 2, 3], [0, 2], [1, 3]], ids=str)
def test_a_map_of_some_blocks_equals_the_map_fitted_on_their_features_alone(store: Store, blocks: list[int]) -> None:
    by_blocks = store(STATES, STATES @ MAP, [150], num_blocks=4)
    states = np.hstack([np.hsplit(STATES, 4)[each] for each in blocks])
    np.testing.assert_allclose(by_blocks.mean_and_deviation(blocks)[1], states.std(axis=0), rtol=1e-5)
    some, alone = (rows.fit(each)(0.1).make_map() for rows, each in ((by_blocks, blocks), (store(states, STATES @ MAP, [200]), [0])))
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
