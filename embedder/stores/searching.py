"""A store that was loaded → a target of searches, with the spec that its rows were embedded with."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from embedder.errors import StorageError
from embedder.filters import Filter
from embedder.quantization import to_binary
from embedder.search import Hit, Target
from embedder.stores.config import LoadConfig
from embedder.stores.opening import open_store
from embedder.stores.rows import vector_type_of


@contextmanager
def open_loaded(config: LoadConfig) -> Iterator[Target]:
    """Open a store for searching; one whose first load has not ended is refused."""
    with open_store(config) as store:
        loaded = store.loaded()
        if loaded is None or loaded.version is None:
            state = "nothing was loaded yet" if loaded is None else "its first load has not ended"
            raise StorageError(f"{store.place}: {state}; run jobs.load")
        kind = vector_type_of(loaded.schema, loaded.spec.dim).kind
        if kind == "int8":
            raise StorageError(
                f"{store.place}: int8 vectors are searched by the application, which has their ranges; search the table instead"
            )

        def find(query_D: npt.NDArray[np.float32], top: int, where: Filter | None) -> list[Hit]:
            return store.search(to_binary(query_D[None])[0] if kind == "binary" else query_D, top, where)

        yield Target(loaded.spec, loaded.schema, find)
