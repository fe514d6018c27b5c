"""Codes of known vectors by hand, and the largest error of a restored code."""

import numpy as np
import pytest

from embedder.core.quantization import Ranges, fit_ranges, from_binary, from_int8, to_binary, to_int8


@pytest.fixture
def unit_vectors() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_codes_are_bins_of_the_range() -> None:
    ranges = Ranges(np.array([0, -1], np.float32), np.array([255, 1.55], np.float32))
    vectors = np.array([[0, -1], [0.9, -0.985], [254.9, 1.545], [255, 1.56], [-7, 9], [300, -9]], np.float32)
    assert to_int8(vectors, ranges).tolist() == [[-128, -128], [-128, -127], [126, 126], [127, 127], [-128, 127], [127, -128]]


def test_a_restored_code_is_the_middle_of_its_bin() -> None:
    ranges = Ranges(np.array([0], np.float32), np.array([255], np.float32))
    assert from_int8(np.array([[-128], [0], [126]], np.int8), ranges).ravel().tolist() == [0.5, 128.5, 254.5]


def test_within_the_range_a_restored_value_is_off_by_at_most_half_a_step(unit_vectors: np.ndarray) -> None:
    ranges = fit_ranges(unit_vectors)
    back_ND = from_int8(to_int8(unit_vectors, ranges), ranges)
    assert back_ND.dtype == np.float32
    assert (np.abs(back_ND - unit_vectors) <= ranges.step_D * 0.5 + 1e-6).all()


def test_codes_do_not_depend_on_the_batch(unit_vectors: np.ndarray) -> None:
    ranges = fit_ranges(unit_vectors)
    np.testing.assert_array_equal(to_int8(unit_vectors[100:110], ranges), to_int8(unit_vectors, ranges)[100:110])


def test_a_constant_component_has_one_code_and_is_restored_exactly() -> None:
    same_ND = np.full((3, 8), 0.25, np.float32)
    codes_ND = to_int8(same_ND, fit_ranges(same_ND))
    assert set(codes_ND.ravel().tolist()) == {-128}
    np.testing.assert_array_equal(from_int8(codes_ND, fit_ranges(same_ND)), same_ND)


def test_binary_packs_signs_eight_to_a_byte() -> None:
    vector = np.array([[0.1, -0.1, 0, 2, -3, -1, -1, 1]], np.float32)
    assert to_binary(vector).tolist() == [[0b10010001]]
    assert from_binary(to_binary(vector)).tolist() == [[1, -1, -1, 1, -1, -1, -1, 1]]
