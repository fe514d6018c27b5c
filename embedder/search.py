"""A query becomes a vector of the table's space, and the rows nearest to it: exact search, no store needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deltalake.exceptions import TableNotFoundError

from embedder.errors import StorageError
from embedder.model.encoder import Encoder
from embedder.model.files import locate_model, read_recipe
from embedder.model.resolve import load_tokenizer
from embedder.output.table import open_delta, read_table
from embedder.schema import DOCUMENTS
from embedder.spec import EmbeddingSpec
from embedder.storage import Options
from embedder.text.chunking import chunk_documents


@dataclass(frozen=True, slots=True)
class Hit:
    """A row found, best first; `score` is the inner product, the cosine where vectors are normalised."""

    score: float
    row: dict[str, Any]


def search_table(uri: str, query: str, top: int, options: Options | None = None) -> list[Hit]:
    """Embed the query as the table's spec says, and scan the newest version for its `top` nearest rows."""
    state = read_table(uri, options or {})
    if state is None:
        raise StorageError(f"{uri}: no table there; make one with jobs.embed")
    return nearest_rows(uri, embed_query(query, state.spec), top, options)


def embed_query(query: str, spec: EmbeddingSpec) -> npt.NDArray[np.float32]:
    """Encode one query: the query prompt instead of the document's, cut at max_tokens, same depth and dim. Shape (D,)."""
    asked = spec.for_queries()
    document = pa.table({"doc_id": ["query"], "text": [query], "content_hash": [""], "shard": [""], "row": [0]}, schema=DOCUMENTS)
    folder, _ = locate_model(spec.model, spec.revision)
    chunks = chunk_documents(document, load_tokenizer(read_recipe(folder)), asked)
    encoder = Encoder.load(asked, "cpu", "float32")
    vector_D: npt.NDArray[np.float32] = encoder.encode(chunks["token_ids"].combine_chunks(), spec.max_tokens).vectors_ND[0]
    return vector_D


def nearest_rows(uri: str, query_D: npt.NDArray[np.float32], top: int, options: Options | None = None) -> list[Hit]:
    """Score every row, a batch at a time; only the best rows' other columns are read."""
    try:
        dataset = open_delta(uri, options or {}).to_pyarrow_dataset()
    except TableNotFoundError as error:
        raise StorageError(f"{uri}: no table there; make one with jobs.embed") from error
    best: list[tuple[float, int, int]] = []
    fragments = list(dataset.get_fragments())
    for number, fragment in enumerate(fragments):
        for first, vectors_ND in _vectors(fragment, dataset.schema, len(query_D)):
            scores_N = vectors_ND @ query_D
            chosen = np.argpartition(-scores_N, min(top, len(scores_N)) - 1)[:top]
            best += [(float(scores_N[row]), number, first + int(row)) for row in chosen]
        best = sorted(best, key=lambda each: -each[0])[:top]
    others = [name for name in dataset.schema.names if name != "embedding"]
    return [Hit(score, fragments[number].take([row], columns=others).to_pylist()[0]) for score, number, row in best]


def _vectors(fragment: Any, schema: pa.Schema, dim: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    first = 0
    for batch in fragment.to_batches(schema=schema, columns=["embedding"]):
        if batch.num_rows:
            yield first, batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, dim)
        first += batch.num_rows
