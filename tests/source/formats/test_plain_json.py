import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedder.source.formats.json_values import parse_json
from embedder.source.formats.plain_json import count_pairs, parse_plain

KEYS = st.sampled_from(["a", "b", "text", "\\", 'x"', '":', "é", "", "a b"])
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,22})(\.[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
STRINGS = st.text(st.sampled_from('ab":\\ {},\n\u2028é\0'), max_size=8).map(json.dumps) | st.sampled_from(['"\\ud800"', '"\\":"', '"\x01"'])
SCALARS = NUMBERS | STRINGS | st.sampled_from(["null", "true", "NaN", "Infinity", "-0", "-0.0", "01", "1e400"]) | st.floats().map(repr)
BLANKS = st.sampled_from(["", "", "", " ", "\t", "\n"])


def write_object(pairs: list[tuple[str, str, str, str]]) -> str:
    return "{" + ",".join(f"{json.dumps(key)}{blank}:{other}{value}" for key, blank, other, value in pairs) + "}"


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(KEYS, BLANKS, BLANKS, values), max_size=4).map(write_object)


VALUES = st.recursive(
    SCALARS, lambda inner: objects(inner) | st.lists(inner, max_size=3).map(lambda each: f"[{','.join(each)}]"), max_leaves=6
)


@settings(max_examples=200, deadline=None)
@given(st.lists(objects(VALUES) | VALUES, min_size=1, max_size=3).map(lambda texts: [text.encode() for text in texts]))
@example([b'{"a":1,"a":2}'])
@example([b'{"a" :1,"a" :2,"t":"\\":\\":"}'])
@example([b'{"a":0.1000000000000000055511151231257827021,"b":{"a":0.1}}'])
@example([b'{"a":{"b":1,"b":2}}', b'{"a":"\xff"}', b'{"a":1}{"a":1}', b"[" * 3000, b'{"a":' + b"[" * 990 + b"]" * 990 + b"}"])
def test_each_text_has_the_exact_parsers_value_or_is_left_to_it(texts: list[bytes]) -> None:
    for text, num_pairs in zip(texts, count_pairs(texts), strict=True):
        found = parse_plain(text, num_pairs)
        if found is not None:
            assert repr(found) == repr(parse_json(text.decode()))


@pytest.mark.parametrize(
    "record",
    [
        {"id": 7, "text": 'He said: "a": "b"', "score": 0.93, "tiny": 1e-07, "none": None},
        {"text": "\\", "meta": {"text": "x", "tags": ["a", {"b": 2**63}]}, "empty": {}},
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_records_as_writers_write_them_are_plain(record: dict[str, Any], separators: tuple[str, str]) -> None:
    text = json.dumps(record, separators=separators).encode()
    assert parse_plain(text, *count_pairs([text])) == record
