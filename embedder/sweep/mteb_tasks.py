"""Tasks of the mteb package, by name: every setting of the grid is an encoder of mteb's protocol, so that all of MTEB runs.

Texts share the cache of the other datasets, so that a task costs one forward pass, whatever the size of the grid.
"""

from collections.abc import Iterable
from itertools import product
from typing import Any

import mteb
import numpy as np
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from embedder.core.errors import ConfigError
from embedder.core.quantization import Floats, cut_vectors
from embedder.sweep.config import Precision
from embedder.sweep.evaluate import Score, Scores, cosine_pairs
from embedder.sweep.grid import Grid, View
from embedder.sweep.retrieval import store_vectors


class MtebEncoder:
    """One view at one dim and precision, with the methods that mteb calls."""

    def __init__(self, view: View, dim: int, precision: Precision) -> None:
        self._view, self._dim, self._precision = view, dim, precision
        name = f"{view.candidate.name.replace('/', '__')}-depth-{view.depth}-dim-{dim}-{precision}"
        self._meta = ModelMeta.create_empty({"name": f"embedder/{name}", "revision": "none"})

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Metadata that mteb stores results under."""
        return self._meta

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: object,  # noqa: ARG002 - mteb's protocol
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        **_encode_kwargs: object,
    ) -> Floats:
        """Return the vectors of all texts: queries with their prompt and as floats, all others as stored documents."""
        texts = [text for batch in inputs for text in batch["text"]]
        is_query = prompt_type == PromptType.query
        widths_NW = self._view.for_queries.embed(texts, "query") if is_query else self._view.embed(texts, "document")
        vectors_ND = cut_vectors(widths_NW, self._dim, normalize=True)
        if is_query and self._precision != "binary":
            return vectors_ND
        return store_vectors(vectors_ND, self._precision)

    def similarity(self, embeddings1: Floats, embeddings2: Floats) -> Floats:
        """Return all cosines."""
        similarities: Floats = _unit(embeddings1) @ _unit(embeddings2).T
        return similarities

    def similarity_pairwise(self, embeddings1: Floats, embeddings2: Floats) -> Floats:
        """Return the cosine of each pair."""
        return cosine_pairs(np.asarray(embeddings1, np.float32), np.asarray(embeddings2, np.float32))


def find_task(name: str) -> Any:
    """Return a task of the package; ConfigError if it has none of that name."""
    try:
        return mteb.get_task(name)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"quality.mteb={name!r}: mteb {mteb.__version__} has no such task; see mteb.get_tasks()") from error


def evaluate_task(task: Any, grid: Grid) -> Scores:
    """Run a task for every setting that embeds queries like documents; mteb's search has no rescoring."""
    scores = {}
    for view in grid.views:
        precisions = [each for each in grid.precisions if "same" in view.query_sides and each != "binary_rescored"]
        for dim, precision in product(view.dims, precisions):
            encoder: Any = MtebEncoder(view, dim, precision)
            result = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
            scores[view.setting(dim, precision, "same")] = Score({"main score": float(result.task_results[0].get_score())}, "main score")
    return scores


def _unit(vectors_ND: Any) -> Floats:
    array_ND = np.atleast_2d(np.asarray(vectors_ND, np.float32))
    return cut_vectors(array_ND, array_ND.shape[1], normalize=True)
