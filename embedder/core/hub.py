"""The Hugging Face hub as a filesystem: entries that never come from a cache, and the commit that a revision names.

A file's version is the hash of its content, which the hub lists: an edit of the same size is seen.
"""

from typing import Any

from huggingface_hub import HfApi, HfFileSystem, parse_hf_uri
from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

OPTIONS: dict[str, Any] = {"skip_instance_cache": True, "expand_info": True}
"""Instances share their listings otherwise. With `expand_info`, one file is asked for by itself, and not by a listing of its folder."""
LISTED: dict[str, Any] = {"expand_info": False}
"""For a listing: 1,000 entries a page in place of 50."""


def check_uri(uri: str) -> None:
    """Raise ValueError if a uri names no repository or bucket."""
    parse_hf_uri(uri)


def find_info(fs: HfFileSystem, path: str) -> dict[str, Any]:
    """Return an entry as the hub has it now, and let `fs` open the file without a listing of its folder."""
    fs.dircache.clear()
    info: dict[str, Any] = fs.info(path)
    fs.dircache[fs._parent(path)] = [info]
    return info


def find_commit(fs: HfFileSystem, path: str) -> str:
    """Return the repository, the revision and the commit that it names now, in words; empty for a bucket, which has no commits."""
    found = fs.resolve_path(path)
    if not isinstance(found, HfFileSystemResolvedRepositoryPath):
        return ""
    repository = HfApi(fs.endpoint, fs.token).repo_info(found.repo_id, repo_type=found.repo_type, revision=found.revision)
    return f"hf://{found.root.partition('@')[0]}, revision {found.revision} at commit {repository.sha}"
