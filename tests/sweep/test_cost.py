"""Times, sizes and prices as a report shows them."""

import pytest

from embedder.sweep.cost import show_bytes, show_seconds, show_usd


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.5, "0.5 s"), (90, "90 s"), (216.4, "3.61 min"), (7200, "2 h"), (100_000, "27.8 h"), (864_000, "10 days")]
)
def test_times(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown


@pytest.mark.parametrize(("size", "shown"), [(999, "999 B"), (9_386_496, "9.39 MB"), (2.5e12, "2.5 TB"), (3e15, "3,000 TB")])
def test_bytes(size: float, shown: str) -> None:
    assert show_bytes(size) == shown


@pytest.mark.parametrize(("usd", "shown"), [(0, "$0.00"), (0.00002, "under $0.0001"), (0.00604, "$0.006"), (1234.5, "$1,234.50")])
def test_money(usd: float, shown: str) -> None:
    assert show_usd(usd) == shown
