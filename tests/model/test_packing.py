from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedder.model.packing import plan_packed, plan_padded

LENGTHS = st.lists(st.integers(1, 600), max_size=200).map(lambda lengths: np.array(lengths, dtype=np.int32))


@given(LENGTHS, st.integers(1, 4096))
def test_every_row_comes_exactly_once(lengths: np.ndarray, token_budget: int) -> None:
    batches = plan_padded(lengths, token_budget)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 4096))
def test_a_batch_fits_the_budget_or_is_one_row(lengths: np.ndarray, token_budget: int) -> None:
    for batch in plan_padded(lengths, token_budget):
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= token_budget


@given(LENGTHS, st.integers(1, 4096))
def test_rows_go_from_longest_to_shortest_and_equal_ones_keep_their_order(lengths: np.ndarray, token_budget: int) -> None:
    rows = [row for batch in plan_padded(lengths, token_budget) for row in batch.tolist()]
    assert rows == sorted(rows, key=lambda row: (-lengths[row], row))


@given(LENGTHS, st.integers(1, 4096))
def test_no_batch_could_take_the_next_row_too(lengths: np.ndarray, token_budget: int) -> None:
    batches = plan_padded(lengths, token_budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch].max() > token_budget


def test_no_rows_give_no_batches() -> None:
    assert plan_padded(np.array([], dtype=np.int32), 4096) == []


@given(LENGTHS, st.integers(1, 4096))
def test_every_row_is_packed_exactly_once_from_longest_to_shortest(lengths: np.ndarray, token_budget: int) -> None:
    rows = [row for batch in plan_packed(lengths, token_budget) for row in batch.tolist()]
    assert rows == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


@given(LENGTHS, st.integers(1, 4096))
def test_a_packed_batch_is_as_full_as_its_own_tokens_allow(lengths: np.ndarray, token_budget: int) -> None:
    batches = plan_packed(lengths, token_budget)
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].sum() <= token_budget
    for batch, following in pairwise(batches):
        assert lengths[batch].sum() + lengths[following[0]] > token_budget


@given(LENGTHS, st.integers(1, 4096))
def test_packing_never_takes_more_batches_than_padding(lengths: np.ndarray, token_budget: int) -> None:
    assert len(plan_packed(lengths, token_budget)) <= len(plan_padded(lengths, token_budget))
