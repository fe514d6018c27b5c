"""A made-up table of some shards, with quarantined records."""

import pytest

from tests.tables import Corpus, MadeTable

CORPUS: Corpus = {
    "large": [(f"d{number}", "one two" if number % 3 else " ", "x") for number in range(9)],
    "large-2": [("a", "five", "x"), ("b", "six", None)],
    "p": [("a", "five", "x"), ("b", " ", "x")],
    "q": [("a", "six seven", "x")],
}


@pytest.fixture
def table(location: str) -> MadeTable:
    return MadeTable(location)
