"""Rows that pgvector's defaults would lose, and values that its SQL could misread."""

import numpy as np
import pyarrow as pa
import pytest

from embedder.source.filter import parse_filter
from embedder.stores.config import PgvectorConfig
from embedder.stores.pgvector import PgvectorStore
from embedder.stores.rows import row_id_of, store_schema
from embedder.stores.vector_store import Loaded
from tests.core.test_spec import SPEC

pytestmark = pytest.mark.real

NUM_ROWS, DIM, WANTED = 12_000, 32, 10


def test_ivfflat_finds_most_of_the_nearest_rows_and_as_many_as_asked_for_behind_a_filter(postgres: str) -> None:
    vectors_ND = np.random.default_rng(1).normal(size=(NUM_ROWS, DIM)).astype(np.float32)
    spec, schema = SPEC.model_copy(update={"dim": DIM}), pa.schema([("year", pa.int64()), ("embedding", pa.list_(pa.float32()))])
    ids = pa.array([row_id_of("s", str(number), 0) for number in range(NUM_ROWS)])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), DIM)
    loaded = Loaded("id", spec, schema, None, None, 0)
    store = PgvectorStore(PgvectorConfig(dsn=postgres, name="lists", index="ivfflat", type="vector"))
    store.record(loaded)
    store.create(loaded)
    store.append(iter([pa.table([ids, pa.array(range(NUM_ROWS)), vectors], schema=store_schema(schema, spec))]))
    store.record(loaded)
    assert store.build_index() == "index ivfflat on vector"
    found = 0
    for query_D in np.random.default_rng(2).normal(size=(20, DIM)).astype(np.float32):
        hits = store.search(query_D, WANTED, None)
        found += len({hit.row["year"] for hit in hits} & set(np.argsort(-(vectors_ND @ query_D))[:WANTED].tolist()))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert len(store.search(query_D, WANTED, parse_filter("year < 60", schema))) == WANTED
    store.close()
    assert found / (20 * WANTED) >= 0.9
