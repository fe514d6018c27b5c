from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.model.packing import plan_packed, plan_padded

LENGTHS = st.lists(st.integers(1, 600), max_size=200).map(lambda lengths: np.array(lengths, dtype=np.int32))
BUDGETS = st.integers(1, 4096)
Plan = Callable[[np.ndarray, int], list[np.ndarray]]


@pytest.mark.parametrize("plan", [plan_padded, plan_packed])
@given(lengths=LENGTHS, token_budget=BUDGETS)
def test_every_row_is_in_one_batch_longest_first_and_equal_lengths_keep_their_order(
    plan: Plan, lengths: np.ndarray, token_budget: int
) -> None:
    rows = [row for batch in plan(lengths, token_budget) for row in batch.tolist()]
    assert rows == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


@given(LENGTHS, BUDGETS)
def test_a_padded_batch_is_as_full_as_the_budget_allows(lengths: np.ndarray, token_budget: int) -> None:
    batches = plan_padded(lengths, token_budget)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= token_budget
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch].max() > token_budget


@given(LENGTHS, BUDGETS)
def test_a_packed_batch_is_as_full_as_the_budget_allows(lengths: np.ndarray, token_budget: int) -> None:
    batches = plan_packed(lengths, token_budget)
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].sum() <= token_budget
    for batch, following in pairwise(batches):
        assert lengths[batch].sum() + lengths[following[0]] > token_budget


@given(LENGTHS, BUDGETS)
def test_packing_never_needs_more_batches_than_padding(lengths: np.ndarray, token_budget: int) -> None:
    assert len(plan_packed(lengths, token_budget)) <= len(plan_padded(lengths, token_budget))


@pytest.mark.parametrize("plan", [plan_padded, plan_packed])
def test_without_rows_there_are_no_batches(plan: Plan) -> None:
    assert plan(np.array([], dtype=np.int32), 4096) == []
