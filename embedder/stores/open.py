"""Open a store: for a load, or as a search target with the spec of its rows."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module

import numpy as np

from embedder.config.load import load_config
from embedder.core.errors import ConfigError, StorageError
from embedder.core.quantization import Floats, Ranges, to_binary
from embedder.core.retry import one_line
from embedder.core.spec import Quantization
from embedder.core.storage import Location
from embedder.search.exact import Hit, Target, open_table
from embedder.search.rescore import rescored
from embedder.search.table_model import choose_model
from embedder.source.filter import Filter
from embedder.stores.config import LoadConfig
from embedder.stores.vector_store import Vector, VectorStore

MOST_INT8 = 127


def split_words(first: str | None, second: str | None, store: str | None) -> tuple[str | None, list[str]]:
    """Return the table, which is not given beside a store, and at most one question; ConfigError for more or fewer words."""
    words = [word for word in (first, second) if word is not None]
    table = words.pop(0) if words and not store else None
    if len(words) > 1 or not (table or store):
        raise ConfigError(f"{words}: give the table's folder (or --store CONFIG), and one query in quotes")
    return table, words


@contextmanager
def open_target(table: str | None, store: str | None, rescore: str | None, model: str | None = None) -> Iterator[Target]:
    """Open a table by its folder, or a store by its load config; rescore by the float vectors of another table if asked.

    `model` is loaded in place of the name in the table's log, and is needed if that is package:NAME.
    """
    opened = open_loaded(load_config(LoadConfig, [store]).config) if store else nullcontext(open_table(Location(str(table))))
    with opened as found:
        target = replace(found, spec=choose_model(found.spec, model))
        yield rescored(target, Location(rescore)) if rescore else target


@contextmanager
def open_loaded(config: LoadConfig) -> Iterator[Target]:
    """Open a store for searching; StorageError if its first load has not finished."""
    with open_store(config) as store:
        loaded = store.loaded()
        if loaded is None or loaded.version is None:
            state = "nothing is loaded" if loaded is None else "its first load has not finished"
            raise StorageError(f"{store.place}: {state}; run jobs.load")

        def find(query_D: Floats, top: int, where: Filter | None) -> list[Hit]:
            codes_X, scale, offset = to_query_codes(query_D, loaded.spec.quantization, loaded.ranges)
            return [replace(hit, score=float(hit.score * scale + offset)) for hit in store.search(codes_X, top, where)]

        yield Target(loaded.spec, loaded.schema, find, config.table.location)


def to_query_codes(query_D: Floats, quantization: Quantization, ranges: Ranges | None) -> tuple[Vector, float, float]:
    """Return the query in the store's type, and scale and offset that turn the store's score into an inner product.

    An int8 vector is (code + 128.5) · step + low, so its inner product with the query is code · (query · step) plus a
    constant. query · step is rounded to int8 by its largest component, since stores multiply codes with codes.
    """
    if quantization == "none":
        return query_D, 1.0, 0.0
    if quantization == "binary":
        return to_binary(query_D[None])[0], 1.0, 0.0
    assert ranges is not None, "int8 without ranges"
    weights_D = query_D * ranges.step_D
    largest = float(np.abs(weights_D).max()) or 1.0
    codes_D = np.rint(weights_D * (MOST_INT8 / largest)).astype(np.int8)
    return codes_D, largest / MOST_INT8, float(query_D @ (ranges.low_D + np.float32(128.5) * ranges.step_D))


@contextmanager
def open_store(config: LoadConfig) -> Iterator[VectorStore]:
    """Open the store that is set and close it at the end; its client's errors become StorageErrors."""
    kind = config.stores[0]
    try:
        module = import_module(f"embedder.stores.{kind}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{kind}: needs the package {error.name!r}, which is not installed; pip install '.[{kind}]' from the checkout"
        ) from error
    store: VectorStore = module.STORE(getattr(config, kind))
    try:
        yield store
    except module.ERRORS as error:
        raise StorageError(f"{store.place}: {one_line(error)}; rows loaded so far are kept, run again to continue") from error
    finally:
        store.close()
