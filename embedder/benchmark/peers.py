"""Run peer encoders in another Python environment, in turn with the encoders of this one."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from embedder.benchmark import peer_server
from embedder.core.errors import ConfigError

VectorRun = Callable[[], np.ndarray]
"""Encodes all texts; returns a vector for each."""

NEEDS = "torch, sentence-transformers[openvino,onnx], datasets and fastembed"


@contextmanager
def open_peers(python: str | None, folder: str, texts: Sequence[str]) -> Iterator[dict[str, VectorRun]]:
    """Start the peer process and yield its contenders; {} without a Python.

    Each run of a contender is one line to the process, one line back, and its vectors in a file. PYTHONSAFEPATH keeps this folder off the
    path of the process, where a module of ours could shadow a package.
    """
    if python is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "texts.json")
        path.write_text(json.dumps(list(texts)))
        command = [python, str(Path(peer_server.__file__)), folder, str(path)]
        try:
            environment = {**os.environ, "PYTHONSAFEPATH": "1"}
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        except OSError as error:
            raise ConfigError(f"--peer-python {python}: {error.strerror}; name the Python of an environment with {NEEDS}") from error
        with process:
            try:
                names: list[str] = json.loads(_ask(process, None))
                yield {name: partial(_encode, process, name, path.with_suffix(".npy")) for name in names}
            finally:
                process.kill()


def _encode(process: "subprocess.Popen[str]", name: str, vectors: Path) -> np.ndarray:
    _ask(process, name)
    found: np.ndarray = np.load(vectors)
    return found


def _ask(process: "subprocess.Popen[str]", name: str | None) -> str:
    """Send a line, if any, and return the next line of the process."""
    assert process.stdin is not None
    assert process.stdout is not None
    if name is not None:
        process.stdin.write(f"{name}\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise ConfigError(f"--peer-python: the peer process exited with {process.wait()} (see above); its environment needs {NEEDS}")
    return answer
