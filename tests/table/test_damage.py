"""Damage to any file of a table is found and mended, found and named, or changes nothing that is read.

DAMAGE_ROUNDS and DAMAGE_SEED set the length and the seed; `make damage` damages every file in five ways, and prints the outcomes.
"""

import os
from pathlib import Path

import pytest

from tests.table.damage import Tally, damage_rounds

ROUNDS = int(os.environ.get("DAMAGE_ROUNDS", "1"))
SEED = int(os.environ.get("DAMAGE_SEED", "0"))
SHORT_SHARE = 0.08


def assert_nothing_is_silent(tally: Tally) -> None:
    """Fail if a damage was neither found nor without effect, or if a damaged part was read without an error."""
    assert tally.silent == []
    assert [each for each in tally.served if not each.startswith(("_delta_log", "_quarantine"))] == []
    assert {"harmless", "mended"} <= set(tally.totals)


def test_damage_to_any_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    assert_nothing_is_silent(damage_rounds(tmp_path, seed=5, rounds=1, share=SHORT_SHARE))


@pytest.mark.slow
@pytest.mark.timeout(300 * ROUNDS)
def test_damage_to_every_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    tally = damage_rounds(tmp_path, SEED, ROUNDS)
    print(f"\nseed {SEED}: {sum(tally.totals.values())} damages: {dict(tally.totals)}")
    for (kind, outcome), count in sorted(tally.outcomes.items()):
        print(f"  {kind:6} {outcome:9} {count}")
    print(*(f"  served until the check: {each}" for each in tally.served), sep="\n")
    assert_nothing_is_silent(tally)
