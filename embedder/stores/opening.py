"""A load's settings → the store they name; its package is imported only now."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from embedder.core.errors import ConfigError, StorageError
from embedder.stores.config import LoadConfig
from embedder.stores.protocol import VectorStore

_CLASSES = {
    "lance": "LanceStore",
    "pgvector": "PgvectorStore",
    "qdrant": "QdrantStore",
    "milvus": "MilvusStore",
    "duckdb": "DuckdbStore",
}


@contextmanager
def open_store(config: LoadConfig) -> Iterator[VectorStore]:
    """Open the one store that is set, and close it at the end; what its package raises becomes a StorageError."""
    kind = config.stores[0]
    try:
        module = import_module(f"embedder.stores.{kind}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{kind}: needs the package {error.name!r}, which is not installed; pip install 'embedder[{kind}]'") from error
    store: VectorStore = getattr(module, _CLASSES[kind])(getattr(config, kind))
    try:
        yield store
    except module.ERRORS as error:
        raise StorageError(f"{store.place}: {' '.join(str(error).split())}; what was loaded is kept, run again to go on") from error
    finally:
        store.close()
