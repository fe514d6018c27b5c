"""The token budget for a device's free memory, computed without a device."""

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


def test_the_budget_fits_a_small_device_and_is_bounded_on_a_large_one() -> None:
    assert plan_token_budget(64 * GIGABYTE, LARGE, 2) == MOST_TOKENS
    assert plan_token_budget(2 * GIGABYTE, LARGE, 2) == 21 * 1024
    assert plan_token_budget(2 * GIGABYTE, LARGE, 4) == 11 * 1024
    assert plan_token_budget(0, LARGE, 2) == LEAST_TOKENS


@given(st.integers(0, 200 * GIGABYTE), st.sampled_from([2, 4]))
def test_a_budget_above_the_minimum_uses_at_most_half_of_the_free_memory(free_bytes: int, dtype_bytes: int) -> None:
    budget = plan_token_budget(free_bytes, LARGE, dtype_bytes)
    assert LEAST_TOKENS <= budget <= MOST_TOKENS
    assert budget == LEAST_TOKENS or budget * bytes_per_token(LARGE, dtype_bytes) <= free_bytes / 2


@pytest.mark.parametrize("family", CONFIGS)
def test_bytes_per_token_of_every_family(family: str) -> None:
    assert bytes_per_token(config_of(family), 2) >= (8 * 64 + 3 * 96) * 2 + 8 * 64


def test_bytes_per_token_include_the_scores_of_eager_attention() -> None:
    assert bytes_per_token(config_of("mpnet"), 4) > 4 * bytes_per_token(config_of("roberta"), 4) / 3
