"""A token budget that a device's free memory allows, found without a device."""

from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from embedder.model.memory import LEAST_TOKENS, MOST_TOKENS, bytes_per_token, plan_token_budget
from tests.model.conftest import CONFIGS

GIGABYTE = 1 << 30
LARGE = transformers.BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


def config_of(family: str) -> Any:
    class_name, settings = CONFIGS[family]
    return getattr(transformers, class_name)(**settings)


def test_a_large_device_gets_the_most_and_a_small_one_what_fits() -> None:
    assert plan_token_budget(64 * GIGABYTE, LARGE, 2) == MOST_TOKENS
    assert plan_token_budget(2 * GIGABYTE, LARGE, 2) == 21 * 1024
    assert plan_token_budget(2 * GIGABYTE, LARGE, 4) == 11 * 1024
    assert plan_token_budget(0, LARGE, 2) == LEAST_TOKENS


@given(st.integers(0, 200 * GIGABYTE), st.sampled_from([2, 4]))
def test_a_budget_above_the_least_stays_within_half_of_what_is_free(free_bytes: int, dtype_bytes: int) -> None:
    budget = plan_token_budget(free_bytes, LARGE, dtype_bytes)
    assert LEAST_TOKENS <= budget <= MOST_TOKENS
    assert budget == LEAST_TOKENS or budget * bytes_per_token(LARGE, dtype_bytes) <= free_bytes / 2


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_says_how_wide_its_states_are(family: str) -> None:
    assert bytes_per_token(config_of(family), 2) >= (8 * 64 + 3 * 96) * 2 + 8 * 64


def test_scores_that_are_held_count_too() -> None:
    assert bytes_per_token(config_of("mpnet"), 4) > 4 * bytes_per_token(config_of("roberta"), 4) / 3
