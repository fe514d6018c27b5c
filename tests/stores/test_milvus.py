"""Values that Milvus does not take are left out or refused by name before anything is written."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedder.core.errors import ConfigError
from embedder.stores.config import MilvusConfig
from embedder.stores.milvus import MilvusStore
from embedder.stores.rows import store_schema
from embedder.stores.vector_store import Loaded
from tests.stores.conftest import TABLE_SPEC, vector_of

pytestmark = pytest.mark.real


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MilvusStore]:
    opened = MilvusStore(MilvusConfig(uri=str(tmp_path / "milvus.db"), index="flat"))
    yield opened
    opened.close()


def loaded_of(metadata: dict[str, pa.DataType]) -> Loaded:
    fields = [*metadata.items(), ("embedding", pa.list_(pa.float32()))]
    return Loaded("id", TABLE_SPEC, pa.schema(fields), None, None, 0)


def test_nulls_within_a_list_are_left_out(store: MilvusStore) -> None:
    loaded = loaded_of({"tags": pa.list_(pa.string()), "sizes": pa.list_(pa.float64())})
    store.record(loaded)
    store.create(loaded)
    row = {"row_id": "a", "tags": ["x", None, "y"], "sizes": [None, float("nan")], "embedding": vector_of("a")}
    store.append(iter([pa.Table.from_pylist([row], store_schema(loaded.schema, TABLE_SPEC))]))
    [hit] = store.search(np.array(vector_of("a"), np.float32), 1, None)
    assert (list(hit.row["tags"]), list(hit.row["sizes"])) == (["x", "y"], [])


@pytest.mark.parametrize("name", ["my col", "a.b", "2x", "in", "LIKE"])
def test_a_column_that_no_filter_can_name_is_refused_before_anything_is_written(store: MilvusStore, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"a filter cannot name column '{name}'.*source\.metadata_columns"):
        store.record(loaded_of({name: pa.int64()}))
    assert store.loaded() is None
