"""Models run, and their tests are collected, on a machine that has no more than torch, transformers, numpy, pyarrow and pydantic."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[1]
ABSENT = ("botocore", "aiobotocore", "boto3", "deltalake", "ray", "s3fs", "tyro")
BLOCKER = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run_without_them(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKER + code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_tests_of_a_gpu_are_collected() -> None:
    options = ["--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/model/test_device.py"]
    code = f"import pytest; sys.exit(pytest.main({options!r}))"
    done = run_without_them(code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_a_gpu_gives_the_vectors_of_a_cpu[bert]" in done.stdout


def test_jobs_of_the_encoder_alone_are_imported() -> None:
    done = run_without_them("import jobs.throughput, jobs.gpu_check, embedder.benchmark.gpu_steps")
    assert done.returncode == 0, done.stderr
