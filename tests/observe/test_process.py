import subprocess
import sys

import numpy as np

from embedder.observe.process import peak_bytes


def test_a_process_does_not_count_what_the_one_that_started_it_held() -> None:
    held = np.ones(400_000_000, np.uint8)
    assert peak_bytes() > held.nbytes
    code = "from embedder.observe.process import peak_bytes; print(peak_bytes())"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(started.stdout) < held.nbytes


def test_it_is_the_most_and_not_what_is_left() -> None:
    before = peak_bytes()
    held = np.ones(before + 50_000_000, np.uint8)
    peak = peak_bytes()
    del held
    assert peak > before
    assert peak_bytes() > 0.99 * peak, "Linux counts the last few pages late"
