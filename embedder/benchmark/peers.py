"""A Python of another environment → contenders that run there, side by side with those of this one."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from embedder.benchmark import peer_server
from embedder.core.errors import ConfigError
from embedder.sweep.timing import Run

NEEDS = "torch and sentence-transformers[openvino,onnx]"


@contextmanager
def open_peers(python: str | None, folder: str, texts: Sequence[str]) -> Iterator[dict[str, Run]]:
    """Start the peers once; each run of one is a line to the process and a line back. Without a Python there are none."""
    if python is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "texts.json")
        path.write_text(json.dumps(list(texts)))
        command = [python, str(Path(peer_server.__file__)), folder, str(path)]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise ConfigError(f"--peer-python {python}: {error.strerror}; name the Python of an environment with {NEEDS}") from error
        with process:
            try:
                names: list[str] = json.loads(_ask(process, None))
                yield {name: partial(_ask, process, name) for name in names}
            finally:
                process.kill()


def _ask(process: "subprocess.Popen[str]", name: str | None) -> str:
    """Wait for the answer to a line, or for the first one."""
    assert process.stdin is not None
    assert process.stdout is not None
    if name is not None:
        process.stdin.write(f"{name}\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise ConfigError(f"--peer-python: the peers ended with {process.wait()} (see above); their environment needs {NEEDS}")
    return answer
