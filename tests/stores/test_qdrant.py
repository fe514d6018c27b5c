"""Columns of any name can be filtered on: Qdrant's keys are paths, and only quotes let a dot or space be."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedder.core.errors import ConfigError
from embedder.source.filter import parse_filter
from embedder.stores.config import QdrantConfig
from embedder.stores.qdrant import QdrantStore, payload_key
from embedder.stores.rows import row_id_of, store_schema
from embedder.stores.vector_store import Loaded
from tests.stores.conftest import TABLE_SPEC, vector_of

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", ["my col", "a.b", "2x", "tags[]", "Größe", "it's"])
def test_a_column_of_any_name_is_filtered_on(tmp_path: Path, name: str) -> None:
    schema = pa.schema([(name, pa.int64()), ("embedding", pa.list_(pa.float32()))])
    loaded = Loaded("id", TABLE_SPEC, schema, None, None, 0)
    store = QdrantStore(QdrantConfig(path=str(tmp_path)))
    store.record(loaded)
    rows = [{"row_id": row_id_of("s", str(value), 0), name: value, "embedding": vector_of("a")} for value in (1, 2, None)]
    store.append(iter([pa.Table.from_pylist(rows, store_schema(schema, TABLE_SPEC))]))
    for test, found in (("= 1", [1]), ("> 1", [2]), ("in (1, 2)", [1, 2]), ("is null", [None]), ("!= 1", [2])):
        hits = store.search(np.array(vector_of("a"), np.float32), 5, parse_filter(f'"{name}" {test}', schema))
        assert sorted(hit.row[name] for hit in hits) == found, test
    store.close()


def test_a_column_that_qdrant_cannot_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"column 'say \"x\"': Qdrant cannot address it"):
        payload_key('say "x"')
