"""A damaged calibration is refused by name, or holds what it held: its fingerprint covers every array."""

import random
from pathlib import Path
from typing import Any

from embedder.core.errors import ConfigError, StorageError
from embedder.model.calibration import DESCRIPTION, TENSORS, load_calibration, write_calibration
from tests.model.test_exits import calibrate
from tests.table.damage import cut, flip, overwrite

FLIPS = 60


def test_damage_to_a_calibration_is_refused_or_changes_nothing(tiny_model: Any, tmp_path: Path) -> None:
    draw, uri = random.Random(3), str(tmp_path / "calibration")
    write_calibration(calibrate(tiny_model), uri)
    whole = load_calibration(uri)
    refused = 0
    for name in (DESCRIPTION, TENSORS):
        path = tmp_path / "calibration" / name
        data = path.read_bytes()
        for number in range(FLIPS):
            # the header of the tensors is short, and every other damage would miss it
            size = len(data) if name == DESCRIPTION or number % 2 else 900
            if number % 10 == 0:
                cut(path, draw.randrange(size))
            elif number % 10 == 1:
                overwrite(path, draw.randrange(size), draw.randbytes(40))
            else:
                flip(path, draw.randrange(8 * size))
            try:
                found = load_calibration(uri)
            except (ConfigError, StorageError):
                refused += 1
            else:
                assert (found.fingerprint, found.full_depth) == (whole.fingerprint, whole.full_depth)
            path.write_bytes(data)
    assert refused > FLIPS
