import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.source.formats.json_values import parse_json


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_written_in_its_shortest_form_or_in_17_digits_stays_a_float(number):
    for literal in (json.dumps(number), f"{number:.16e}"):
        assert type(parse_json(literal)) is float
        assert parse_json(literal) == number


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_no_digit_of_a_number_is_lost(number):
    literal = f"{number:e}"
    found = parse_json(literal)
    digits = len(number.as_tuple().digits)
    assert found == number or number in (Decimal(repr(found)), Decimal(f"{found:.{digits - 1}e}"))


@pytest.mark.parametrize("literal", ["1e400", "1e-400", "9007199254740993.0", "12345678901234567.89", "0.1000000000000000001"])
def test_a_number_that_no_double_holds_is_a_decimal(literal):
    assert parse_json(literal) == Decimal(literal)


def test_absurd_numbers_are_exact_or_an_error():
    assert parse_json("1." + "0" * 100_000) == 1
    with pytest.raises(ValueError, match="out of range"):
        parse_json("1e99999999999999999999")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "\\u0061": 3}}]'])
def test_a_key_twice_is_an_error(text):
    with pytest.raises(ValueError, match="key 'a' 2 times"):
        parse_json(text)
