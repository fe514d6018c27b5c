"""Synthetic chunks are of the sample's tokens, no longer than its chunks, and the same from run to run."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.text.synthetic import mix_chunks

BODIES = st.lists(st.lists(st.integers(10, 99), min_size=0, max_size=30), min_size=2, max_size=8).filter(lambda each: any(each))
TYPE = pa.list_(pa.int32())


@given(BODIES, st.integers(1, 20))
def test_synthetic_chunks_keep_the_ends_and_the_longest_length_and_hold_tokens_of_the_sample(bodies: list[list[int]], count: int) -> None:
    chunks = [[1, 2, *body, 3] for body in bodies]
    mixed = mix_chunks(pa.array(chunks, TYPE), count, (0, 7))
    if all(body == bodies[0] for body in bodies):
        assert len(mixed) == 0, "nothing can be told from what every chunk begins with"
        return
    assert (len(mixed), mixed.type) == (count, TYPE)
    for made in mixed.to_pylist():
        assert (made[:2], made[-1]) == ([1, 2], 3)
        assert 3 < len(made) <= max(map(len, chunks))
        assert set(made) <= {token for chunk in chunks for token in chunk}


def test_passages_halves_and_swaps_come_in_turn_and_depend_on_the_seed_alone() -> None:
    chunks = pa.array([[1, *range(start, start + 20), 2] for start in (100, 200, 300)], TYPE)
    passage, halves, swapped = mix_chunks(chunks, 3, (5,)).to_pylist()
    assert passage[1:-1] == list(range(passage[1], passage[1] + len(passage) - 2))
    assert 6 <= len(passage) - 2 <= 16
    jumps = [number for number in range(2, 21) if halves[number] != halves[number - 1] + 1]
    assert (len(halves), jumps) == (22, [11])
    [own] = [base for base in (100, 200, 300) if sum(base <= token < base + 20 for token in swapped) > 10]
    kept = sum(token == own + place for place, token in enumerate(swapped[1:-1]))
    assert 8 <= kept <= 16
    assert mix_chunks(chunks, 3, (5,)).to_pylist() == [passage, halves, swapped]
    assert mix_chunks(chunks, 3, (6,)).to_pylist() != [passage, halves, swapped]


@pytest.mark.parametrize("chunks", [[[1, 5, 2]], [[1, 5, 2], [1, 5, 2]], [[1, 2], [1, 2]]])
def test_one_chunk_or_equal_ones_give_none(chunks: list[list[int]]) -> None:
    assert mix_chunks(pa.array(chunks, TYPE), 4, (0,)).to_pylist() == []
