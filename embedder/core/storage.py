"""All input and output: local paths and object stores behind one set of verbs. The only module that imports fsspec."""

import errno
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from embedder.core.errors import StorageError
from embedder.core.listing import (
    NOTHING,
    WILDCARDS,
    Entries,
    Files,
    Found,
    Info,
    Kind,
    list_matches,
    mark_names,
    sort_entries,
    split_folders,
    to_found,
)
from embedder.core.local_files import find_entries, link_once, list_entries, list_sizes, walk_entries
from embedder.core.retry import fetch_whole, is_transient, with_retries
from embedder.core.storage_errors import explained

Options = Mapping[str, Any]
T = TypeVar("T")

READ_BLOCK_BYTES = 8 << 20
"""Size of a ranged request: hides an object store's latency, small beside a worker's memory."""

PAGE_KEYS = 1_000
LISTING_THREADS = 8
"""Folders listed at a time: a page of 1,000 keys takes a core tens of milliseconds, and holds a megabyte."""

PROBE_PREFIX = "_writable-"
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_S3_CONFIG: Options = {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 30, "max_pool_connections": 32}
"""botocore tries once: its retry quota runs out when half of 300 requests fail, and its attempts multiply with the 5 of s3fs, which are
kept (2 seconds a request). With 8 attempts here, a throttled write failed after 45 requests and 222 s."""

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}


@dataclass(frozen=True, slots=True)
class Location:
    """A uri and the options of its filesystem."""

    uri: str
    options: Options = field(default_factory=dict, repr=False)

    def child(self, name: str) -> "Location":
        """Return the location of a file or folder below this one."""
        return Location(f"{self.uri.rstrip('/')}/{name}", self.options)

    def open(self) -> "Store":
        """Return the store behind the location; StorageError if its filesystem cannot be opened."""
        return Store(self.uri, self.options)


class Store:
    """A folder, bucket prefix or file, opened with its filesystem. Cheap; each process makes its own."""

    def __init__(self, uri: str, options: Options | None = None) -> None:
        self._options = options
        found = _PROTOCOL.match(uri)
        protocol = found[1] if found else "file"
        given = _with_s3_retries(options or {}) if protocol in ("s3", "s3a") else options or {}
        # not at the top: its client takes half a second to import
        self._hub: Any = import_module("embedder.core.hub") if protocol == "hf" else None
        given = {**self._hub.OPTIONS, **given} if self._hub else given
        try:
            if self._hub:
                self._hub.check_uri(uri)
            # not url_to_fs, which takes :: in a name for a chain of filesystems
            kind = fsspec.get_filesystem_class(protocol)
            self.fs = fsspec.filesystem(protocol, use_listings_cache=False, **{**kind._get_kwargs_from_urls(uri), **given})
            self.path: str = kind._strip_protocol(uri)
        except ImportError as error:
            extra = _EXTRAS.get(protocol, protocol)
            raise StorageError(
                f"{uri}: {protocol}:// needs a package that is not installed; pip install '.[{extra}]' from the checkout"
            ) from error
        except (ValueError, TypeError) as error:
            raise StorageError(
                f"{uri}: not a uri that can be opened ({error}); use a local path, s3://, gs://, az:// or hf://datasets/"
            ) from error
        self._listed = self._hub.LISTED if self._hub else {}
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if self.is_local and not self.path.startswith("/"):  # ~name, where there is no such user
            self.path = f"{Path.cwd()}/{self.path}"

    @cached_property
    def is_glob(self) -> bool:
        """Whether the path is a pattern: it holds a wildcard, and no file or folder of that name exists (two requests to learn)."""
        if not any(character in self.path for character in WILDCARDS):
            return False
        return not Path(self.path).exists() if self.is_local else self.info() is None

    @property
    def uri(self) -> str:
        """The absolute uri: a plain path on local disk, with the protocol elsewhere."""
        return self._uri_of(self.path)

    def _uri_of(self, path: str) -> str:
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    @property
    def place(self) -> str:
        """The canonical name: on local disk, dots and links are resolved."""
        return os.path.realpath(self.path) if self.is_local else self.uri

    def find_commit(self) -> str:
        """Return, for a repository of the hub, the commit that its revision names, in words; empty for any other place."""
        with explained(self.uri, "look at"):
            return "" if self._hub is None else with_retries(lambda: self._hub.find_commit(self.fs, self.path), self.uri)

    def child(self, name: str) -> str:
        """Return the uri of a file in this folder."""
        return f"{self.uri.rstrip('/')}/{name}"

    def list_files(self) -> list[Found]:
        """Return the file, the folder's files at any depth, or the glob's matches, ordered by uri; [] if there are none."""
        files = self.list_entries().files
        columns = files.uris.to_pylist(), files.versions.to_pylist(), files.sizes.tolist()
        return [Found(*row) for row in zip(*columns, strict=True)]

    def list_entries(self) -> Entries:
        """Return `list_files` and, marked by kind, everything else below the folder or beside the glob's matches that is not a file.

        Folders of a large source on S3 are listed side by side. Raise StorageError if any folder below cannot be listed.
        """
        with explained(self.uri, "list"):
            batches = [self._sort(infos) for infos in [self._match()]] if self.is_glob else self._walk()
        others = (other for batch in batches for other in batch.others)
        return Entries(
            Files.concat([batch.files for batch in batches] or [NOTHING.files]), tuple(sorted(others, key=lambda each: each.uri))
        )

    def _match(self) -> list[Info]:
        find, ls = (find_entries, list_entries) if self.is_local else (self._find, self._ls)
        return list_matches(self.path, ls, find, map_threads)

    def _walk(self) -> list[Entries]:
        if self.is_local:
            return [self._sort(infos) for infos in walk_entries(self.path)]
        above, folders = split_folders(self.path, self._ls, map_threads) if self._is_large() else ([], [self.path])
        return [self._sort(above), *map_threads(lambda folder: self._sort(self._find(folder)), folders, LISTING_THREADS)]

    def _is_large(self) -> bool:
        """Return whether a folder on S3 holds more than a page of keys, so that its folders are worth a request each."""
        if not hasattr(self.fs, "call_s3"):
            return False
        bucket, key, _ = self.fs.split_path(self.path)
        prefix = f"{key}/" if key else ""
        page = with_retries(lambda: self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=PAGE_KEYS), self.uri)
        return bool(page.get("IsTruncated"))

    def _sort(self, infos: list[Info]) -> Entries:
        return sort_entries(infos, "") if self.is_local else sort_entries(mark_names(infos, self.fs._strip_protocol), self._uri_of(""))

    def _find(self, path: str) -> list[Info]:
        return list(with_retries(lambda: self.fs.find(path, detail=True, **self._listed), self.uri).values())

    def _ls(self, path: str) -> list[Info]:
        try:
            return list(with_retries(lambda: self.fs.ls(path, detail=True, **self._listed), self.uri))
        except FileNotFoundError:
            return []

    def list_folder(self) -> list[Found]:
        """Return the files directly in the folder; [] if it does not exist."""
        with explained(self.uri, "list"):
            try:
                infos = with_retries(lambda: self.fs.ls(self.path, detail=True, **self._listed), self.uri)
            except FileNotFoundError:
                return []
        return [self._found(info) for info in infos if info["type"] == "file"]

    def list_sizes(self) -> dict[str, int]:
        """Return the sizes of the files directly in the folder, by file name; {} if it does not exist."""
        with explained(self.uri, "list"):
            if self.is_local:
                return list_sizes(self.path)
            infos = self._ls(self.path)
        return {info["name"].rpartition("/")[2]: int(info["size"] or 0) for info in infos if info["type"] == Kind.FILE}

    def info(self) -> Found | None:
        """Return one object's entry; None if it does not exist."""
        with explained(self.uri, "look at"):
            try:
                return self._found(with_retries(self._info, self.uri))
            except FileNotFoundError:
                return None

    def _info(self) -> Info:
        return cast(Info, self._hub.find_info(self.fs, self.path) if self._hub else self.fs.info(self.path))

    @contextmanager
    def open_input(self, narrow: bool = False) -> Iterator[IO[bytes]]:
        """Open for seekable reads, with blocks read ahead; a block that fails or arrives incomplete is fetched again.

        `narrow` turns off reading ahead, for a reader of a few columns: pyarrow requests each column chunk whole.
        """
        kwargs = {} if self.is_local else {"cache_type": "none" if narrow else "readahead", "block_size": READ_BLOCK_BYTES}
        with explained(self.uri, "read"), with_retries(lambda: self._open(kwargs), self.uri) as file:
            if isinstance(file, AbstractBufferedFile):
                file.cache.fetcher = fetch_whole(file.cache.fetcher, file.size, self.uri)
            yield cast(IO[bytes], file)

    def _open(self, kwargs: Options) -> Any:
        if self._hub:
            self._info()
        return self.fs.open(self.path, "rb", **kwargs)

    def write_once(self, data: bytes) -> bool:
        """Create the object with all of its bytes; return False and leave it unchanged if it exists.

        A write whose response was lost is retried and finds its own object: the result is False, and the bytes are stored.
        """
        with explained(self.uri, "write"):
            if self.is_local:
                return link_once(Path(self.path), data)
            return with_retries(lambda: self._create(data), self.uri)

    def _create(self, data: bytes) -> bool:
        try:
            self.fs.pipe_file(self.path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # seaweedfs answers a lost race with EINVAL; if the object is there, it was not a refusal
            if error.errno == errno.EINVAL and self.fs.exists(self.path):
                return False
            raise
        return True

    def check_writable(self) -> float:
        """Write a small file below this folder and remove it, so that a run without write access fails at its start.

        Return the storage's time, which is the one to compare the ages of its files with.
        """
        probe = Store(self.child(f"{PROBE_PREFIX}{uuid.uuid4().hex}"), self._options)
        probe.write_once(b"")
        found = probe.info()
        probe.remove()
        return time.time() if found is None or found.modified is None else found.modified

    def remove(self) -> None:
        """Delete one object; do nothing if it does not exist."""
        with explained(self.uri, "remove"):
            try:
                with_retries(lambda: self.fs.rm_file(self.path), self.uri)
            except FileNotFoundError:
                return

    def _found(self, info: Info) -> Found:
        return to_found(info, self._uri_of(info["name"]))


def _with_s3_retries(options: Options) -> Options:
    """Complete s3's options, and let s3fs retry every transient error of a request, such as a page of a listing, not only 503."""
    from s3fs.core import set_custom_error_handler  # not at the top: local runs need no s3fs

    set_custom_error_handler(is_transient)
    return {**options, "config_kwargs": {**_S3_CONFIG, **options.get("config_kwargs", {})}}


def map_threads(function: Callable[[T], Any], items: list[T], num_threads: int = 32) -> list[Any]:
    """Return a storage verb's results for all items, in order, called on threads: they wait for the network, not the CPU."""
    if not items:
        return []
    with ThreadPoolExecutor(min(num_threads, len(items))) as pool:
        return list(pool.map(function, items))
