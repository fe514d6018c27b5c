import os
import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.source.formats.rows import excerpt, join_texts, to_id
from embedder.source.validation import SeenIds, hash_ids, hash_texts


@given(st.lists(st.lists(st.sampled_from([*"abcdefgh", "", None]), max_size=12), max_size=6))
def test_seen_ids_are_those_that_a_set_finds(batches):
    seen, known = SeenIds(), set()
    for batch in batches:
        expected = []
        for position, value in enumerate(batch):
            if value and value in known:
                expected.append(position)
            known.add(value)
        assert seen.claim(pa.array(batch, pa.string())) == expected


@given(st.lists(st.tuples(*[st.sampled_from(["a", "b c", "", " ", None])] * 3), max_size=8))
def test_joining_equals_joining_in_python(records):
    expected = [None if all(part is None for part in record) else " ".join(part for part in record if part) for record in records]
    assert join_texts([pa.array([record[index] for record in records], pa.string()) for index in range(3)]).to_pylist() == expected


def test_the_hashes_of_a_slice_are_those_of_its_texts():
    texts = pa.array(["a", None, "ä", ""])
    assert hash_texts(texts.slice(2)).equals(hash_texts(pa.array(["ä", ""])))
    assert len(hash_texts(pa.array([], pa.string()))) == 0


def test_excerpts_are_short_and_valid_utf_8():
    assert excerpt(b"caf\xe9" * 1000) == "caf�" * 50
    assert excerpt("\ud800" * 300) == "?" * 200


@pytest.mark.parametrize("value", [True, float("nan"), [], {}, b"x", "\ud800"])
def test_an_id_is_a_string_or_a_number(value):
    with pytest.raises(ValueError, match=r"."):
        to_id(value)


@pytest.mark.real
def test_ids_have_the_same_hash_in_every_process() -> None:
    code = "import pyarrow as pa; from embedder.source.validation import hash_ids; print(hash_ids(pa.array(['id-1', 'ümlaut'])).tolist())"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{hash_ids(pa.array(['id-1', 'ümlaut'])).tolist()}\n"}
