"""A token's weight is zero if all texts hold it, and grows as fewer do."""

import numpy as np
import pyarrow as pa
import pytest

from embedder.text.token_idf import count_tokens, weigh_tokens

ROWS = pa.array([[0, 5, 5, 3], [0, 3], [0, 7, 3, 5]], pa.list_(pa.int32()))


def test_rows_are_counted_instead_of_occurrences() -> None:
    assert count_tokens(ROWS, 9).tolist() == [3, 0, 0, 3, 0, 2, 0, 1, 0]
    assert count_tokens(ROWS.slice(1, 2), 9).tolist() == [2, 0, 0, 2, 0, 1, 0, 1, 0]


def test_rarer_tokens_weigh_more_and_tokens_of_all_rows_weigh_zero() -> None:
    weights = weigh_tokens(count_tokens(ROWS, 9), 3)
    assert weights[0] == weights[3] == 0
    assert 0 < weights[5] < weights[7] < weights[1]
    assert weights[7] == pytest.approx(np.log(2))
