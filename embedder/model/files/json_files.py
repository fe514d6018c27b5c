"""A model's JSON files → Python, with errors that start with the file's name."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedder.core.errors import ModelError


@contextmanager
def file_errors(name: str) -> Iterator[None]:
    """Raise a library's error as a ModelError of one line that starts with the file's name."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{name}: cannot be used ({type(error).__name__}: {reason}); give the model as it was saved") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, {} if there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path.name}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name}: expected a JSON object, found a {type(content).__name__}")
    return content
