"""Local disk: write a file once, and list folders, links as their targets."""

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from embedder.core.listing import Info, Kind

BATCH = 10_000
_KINDS = {stat.S_IFDIR: Kind.FOLDER, stat.S_IFREG: Kind.FILE}
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def find_entries(path: str) -> list[Info]:
    """Return all that `walk_entries` yields."""
    return [info for infos in walk_entries(path) for info in infos]


def walk_entries(path: str) -> Iterator[list[Info]]:
    """Yield the file, or everything below the folder but folders, links as their targets, some thousand entries at a time.

    Raise OSError if a folder below cannot be listed.
    """
    try:
        root = _describe(path, Path(path).stat())
    except (FileNotFoundError, NotADirectoryError):
        return
    if root["type"] != Kind.FOLDER:
        yield [root]
        return
    found: list[Info] = []
    folders = [path]
    while folders:
        folder = folders.pop()
        for info in list_entries(folder):
            if info["type"] == Kind.FOLDER:
                folders.append(info["name"])
            else:
                found.append(info)
        if len(found) >= BATCH:
            yield found
            found = []
    yield found


def list_entries(folder: str) -> list[Info]:
    """Return the entries of a folder, links as their targets; [] if it is not a folder, or was removed meanwhile."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed meanwhile
                found.append(_describe_entry(entry))
    return found


def list_sizes(folder: str) -> dict[str, int]:
    """Return the sizes of the files in a folder by name, as `list_entries` finds them, in half its time: of a table they are many."""
    found = {}
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as error:
                if isinstance(error, FileNotFoundError) or entry.is_symlink():
                    continue
                raise
            if stat.S_ISREG(status.st_mode):
                found[entry.name] = status.st_size
    return found


def _describe_entry(entry: "os.DirEntry[str]") -> Info:
    """Describe an entry; a link to a folder above itself is not followed, and one whose target cannot be reached is broken."""
    if not entry.is_symlink():
        return _describe(entry.path, entry.stat())
    try:
        info = _describe(entry.path, entry.stat())
        path = Path(entry.path)
        is_cycle = info["type"] == Kind.FOLDER and any(path.samefile(folder) for folder in path.parents)
        return {**info, "type": Kind.LINK_CYCLE} if is_cycle else info
    except OSError:
        return {"name": entry.path, "size": 0, "type": Kind.BROKEN_LINK}


def _describe(path: str, found: os.stat_result) -> Info:
    return {"name": path, "size": found.st_size, "type": _kind_of(found), "mtime": found.st_mtime}


def _kind_of(found: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(found.st_mode), Kind.SPECIAL_FILE)


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
