"""The job and its encoder from Python, in a process with Ray datasets of its own."""

import numpy as np
import pytest
import ray

import embedder
from embedder.core.errors import ConfigError
from tests.integration.conftest import Site, documents

pytestmark = pytest.mark.ray


def test_a_run_and_a_graph_of_ones_own_give_the_same_vectors(ray_site: Site) -> None:
    ray_site.corpus.put("a.jsonl", documents(0, 12))
    before = ray.data.DataContext.get_current()
    block_size = before.target_max_block_size
    config = ray_site.config().model_dump(exclude_unset=True)
    with pytest.raises(ConfigError, match=r"embedding.depth: embedding.depth=0: input should be greater"):
        embedder.embed(config, {"embedding.depth": 0})
    summary = embedder.embed(config, {"embedding.depth": 3, "embedding.dim": 64})
    assert (summary.version, summary.stats.documents, dict(summary.failures)) == (0, 12, {})
    assert ray.data.DataContext.get_current() is before
    assert before.target_max_block_size == block_size
    assert embedder.embed(config, {"embedding.depth": 3, "embedding.dim": 64}).did_nothing

    table = embedder.open_table(ray_site.table_uri, model=ray_site.model)
    hit = table.search(documents(3, 1)[0]["text"], top=1)[0]
    assert (table.spec.depth, hit.row["doc_id"]) == (3, "d3")

    encoded = ray.data.from_items(documents(0, 12)).map_batches(
        embedder.BatchEncoder,
        fn_constructor_args=({"model": ray_site.model, "depth": 3, "dim": 64},),
        fn_constructor_kwargs={"chunking": config["chunking"], "compute": config["compute"]},
        concurrency=1,
        batch_size=5,
    )
    rows = sorted(encoded.take_all(), key=lambda row: (int(row["id"][1:]), row["chunk"]))
    expected = ray_site.rows()
    assert [(row["id"], row["start_char"], row["end_char"]) for row in rows] == [
        (row["doc_id"], row["start_char"], row["end_char"]) for row in expected
    ]
    np.testing.assert_allclose(
        np.stack([row["embedding"] for row in rows]), np.array([row["embedding"] for row in expected], np.float32), atol=1e-5
    )
