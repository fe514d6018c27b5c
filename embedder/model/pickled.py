"""Pickled weights → tensors, by torch's loader that runs no code of the file."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from embedder.core.errors import ModelError


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Map a file of named tensors into memory; ModelError if it is damaged or holds any other object."""
    where = f"{path.parent.name}/{path.name}"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_map(path))
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{where}: holds more than tensors, which is not loaded ({reason}); save the model as safetensors") from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise ModelError(f"{where}: damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]}); download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{where}: expected a dict of tensors, found a {type(content).__name__}; save the model with save_pretrained()")
    others = [str(name) for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"{where}: {others[0]!r} is not a tensor ({len(others)} in all); save the model with save_pretrained()")
    return content


def _can_map(path: Path) -> bool:
    """Return whether the file has torch's format since 1.6, a zip archive."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
