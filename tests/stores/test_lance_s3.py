"""LanceDB on a real S3 server: table and store side by side in a bucket."""

import pytest

from tests.stores.conftest import Loader, TypedTable, corpus_of
from tests.stores.test_load import assert_in_step

pytestmark = pytest.mark.s3


def test_a_store_on_s3_follows_a_table_on_s3(bucket: str) -> None:
    loader = Loader(TypedTable(f"{bucket}/table"), {"lance": {"uri": f"{bucket}/lance", "name": "documents"}})
    loader.table.follow(corpus_of(3))
    assert loader.load().outcome == "loaded"
    assert_in_step(loader, 0)
    loader.table.follow({"shard-0": ["d0 new", "d1 w0"]})
    assert loader.load().outcome == "refreshed"
    assert_in_step(loader, 1)
    assert loader.load().outcome == "nothing to do"
