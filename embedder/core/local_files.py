"""Local disk: write a file once, and list a link as its target."""

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}

Info = dict[str, Any]
"""fsspec's description of a folder entry."""


def follow_link(info: Info, look: Callable[[str], Info]) -> Info:
    """Return the description of a link's target; other entries, and links to a folder above themselves (a cycle), stay as they are.

    A dangling link is listed as a file, so that reading it raises.
    """
    if not info["islink"]:
        return info
    path = Path(info["name"])
    try:
        return info if any(path.samefile(folder) for folder in path.parents) else look(info["name"])
    except OSError:
        return {**info, "type": "file"}


def link_once(path: Path, data: bytes) -> bool:
    """Write and sync a temporary file, then link it to its name; return False if the name is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # without hard links: a rename is as atomic, but the last of two racing writers wins
            if path.exists():
                return False
            temporary.rename(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)
