"""Links on local disk: what a listing says of one becomes what it says of the file or folder that it leads to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
