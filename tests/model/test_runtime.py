"""A process whose device failed is of no more use: it ends, and says why."""

import subprocess
import sys


def end_with(error: str) -> subprocess.CompletedProcess[str]:
    code = f"import torch; from embedder.model.runtime import ending_with_its_device\nwith ending_with_its_device(): raise {error}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_device_that_fails_ends_its_process_and_another_error_does_not() -> None:
    failed = end_with("torch.AcceleratorError('CUDA error: an illegal memory access was encountered')")
    assert failed.returncode == 70
    assert failed.stderr.strip() == (
        "the device failed (CUDA error: an illegal memory access was encountered); this worker ends, and another one takes over"
    )
    other = end_with("RuntimeError('no')")
    assert other.returncode == 1
    assert other.stderr.endswith("RuntimeError: no\n")
