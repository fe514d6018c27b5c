"""Local disk: files that are written once, and links that are listed as what they lead to."""

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}

Info = dict[str, Any]
"""What fsspec says of an entry of a folder."""


def follow_link(info: Info, look: Callable[[str], Info]) -> Info:
    """Look where a link leads; anything else comes back as it is, and so does a link to a folder that it lies in: it leads on for ever.

    One that leads nowhere is a file, so that reading it says so.
    """
    if not info["islink"]:
        return info
    path = Path(info["name"])
    try:
        return info if any(path.samefile(folder) for folder in path.parents) else look(info["name"])
    except OSError:
        return {**info, "type": "file"}


def link_once(path: Path, data: bytes) -> bool:
    """Write a temporary neighbour, make it durable, then link it to its name: never half a file, never a second one."""
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
            # no hard links here: a rename is as atomic, and only a race between two writers is decided the other way
            if path.exists():
                return False
            temporary.rename(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)
