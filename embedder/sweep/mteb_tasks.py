"""Tasks of the mteb package, by name: every setting of the grid is an encoder of its protocol, so that all of MTEB runs.

Texts go through the same cache as everything else, so that a task costs one forward pass, whatever the size of the grid.
"""

from collections.abc import Iterable
from typing import Any

import mteb
import numpy as np
import numpy.typing as npt
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from embedder.core.errors import ConfigError
from embedder.sweep.config import Precision
from embedder.sweep.evaluate import Score, Scored, cosine_pairs
from embedder.sweep.grid import Grid, View
from embedder.sweep.retrieval import cut, store_vectors

Floats = npt.NDArray[np.float32]


class MtebEncoder:
    """One view at one dim and precision, as mteb asks for it."""

    def __init__(self, view: View, dim: int, precision: Precision) -> None:
        self._view, self._dim, self._precision = view, dim, precision
        name = f"{view.candidate.name.replace('/', '__')}-depth-{view.depth}-dim-{dim}-{precision}"
        self._meta = ModelMeta.create_empty({"name": f"embedder/{name}", "revision": "none"})

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Metadata that results are filed under."""
        return self._meta

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: object,  # noqa: ARG002 - the protocol is theirs
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        **_encode_kwargs: object,
    ) -> Floats:
        """Give the vectors of all texts: queries with the query's prompt and as floats, anything else as stored documents."""
        texts = [text for batch in inputs for text in batch["text"]]
        is_query = prompt_type == PromptType.query
        widths_NW = self._view.asking.widths(texts, "query") if is_query else self._view.widths(texts, "document")
        vectors_ND = cut(widths_NW, self._dim)
        if is_query and self._precision != "binary":
            return vectors_ND
        return store_vectors(vectors_ND, self._precision)

    def similarity(self, embeddings1: Floats, embeddings2: Floats) -> Floats:
        """Give all cosines."""
        similarities: Floats = _unit(embeddings1) @ _unit(embeddings2).T
        return similarities

    def similarity_pairwise(self, embeddings1: Floats, embeddings2: Floats) -> Floats:
        """Give the cosine of each pair."""
        return cosine_pairs(np.asarray(embeddings1, np.float32), np.asarray(embeddings2, np.float32))


def find_task(name: str) -> Any:
    """Find a task of the package by name; ConfigError if it has none."""
    try:
        return mteb.get_task(name)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"quality.mteb={name!r}: mteb {mteb.__version__} has no such task; see mteb.get_tasks()") from error


def evaluate_task(task: Any, grid: Grid) -> Scored:
    """Run a task for every setting whose queries are the documents' like; rescoring is not part of mteb's search."""
    name = str(task.metadata.name)
    scores = {}
    for view in grid.views:
        for dim in view.dims:
            for precision in grid.precisions:
                if "same" in view.query_sides and precision != "binary_rescored":
                    main = _run(task, MtebEncoder(view, dim, precision))
                    scores[view.setting(dim, precision, "same")] = Score({"main score": main}, "main score")
    return Scored(name, scores)


def _run(task: Any, encoder: MtebEncoder) -> float:
    result = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)  # type: ignore[arg-type] # by its protocol
    return float(result.task_results[0].get_score())


def _unit(vectors_ND: Any) -> Floats:
    array_ND = np.atleast_2d(np.asarray(vectors_ND, np.float32))
    return cut(array_ND, array_ND.shape[1])
