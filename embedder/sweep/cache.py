"""What was computed once, kept block by block in the output folder: a sweep that was interrupted goes on where it stopped."""

import io
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from embedder.core.storage import Location, Store

Array = npt.NDArray[Any]


def digest_texts(texts: Sequence[str]) -> str:
    """Hash texts in order, so that no two lists share a digest."""
    hashed = blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()


class Cache:
    """Arrays by key, block and name, below one folder; each is written whole or not at all."""

    def __init__(self, location: Location) -> None:
        self._store, self._options = location.open(), location.options

    def names(self, key: str) -> set[str]:
        """List what is there of a key, as block-name."""
        files = Store(self._store.child(key), self._options).list_folder()
        return {each.uri.rpartition("/")[2].removesuffix(".npy") for each in files if each.uri.endswith(".npy")}

    def read(self, key: str, name: str) -> Array:
        """Read one array."""
        with Store(self._store.child(f"{key}/{name}.npy"), self._options).open_input() as file:
            array: Array = np.load(io.BytesIO(file.read()), allow_pickle=False)
        return array

    def write(self, key: str, name: str, array: Array) -> None:
        """Write one array, unless it is there."""
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        Store(self._store.child(f"{key}/{name}.npy"), self._options).write_once(buffer.getvalue())
