"""The query side of a table: texts → vectors that may be compared with its own. Beneath it are torch and transformers only.

encoder = QueryEncoder.from_table("s3://bucket/table")
vectors = encoder.encode(["split a path into folder and file"])
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedder.model.encoder import Encoder
from embedder.model.files import locate_model, read_recipe
from embedder.model.resolve import load_tokenizer
from embedder.output.record import read_spec
from embedder.spec import EmbeddingSpec
from embedder.storage import Options
from embedder.text.chunking import Chunker

BUDGET_TOKENS = 4096
"""Of one forward pass, or of one longer text."""


class QueryEncoder:
    """Encodes queries as a spec says: the query prompt in place of the document's, the same depth, pooling and dim."""

    def __init__(self, spec: EmbeddingSpec, device: str = "cpu", dtype: str = "float32") -> None:
        self.spec, asked = spec, spec.for_queries()
        folder, _ = locate_model(spec.model, spec.revision)
        tokenizer = load_tokenizer(read_recipe(folder))
        self._queries = Chunker(tokenizer, asked)
        self._passages = Chunker(tokenizer, asked.model_copy(update={"prompt": spec.prompt}))
        self._encoder = Encoder.load(asked, device, dtype)

    @classmethod
    def from_table(cls, uri: str, options: Options | None = None, device: str = "cpu", dtype: str = "float32") -> "QueryEncoder":
        """Make the encoder that matches a table; its model must be here under the name that the table's spec gives it."""
        return cls(read_spec(uri, options or {}), device, dtype)

    def encode(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode queries, each cut at max_tokens; gives (N, dim)."""
        return self._encode(self._queries, queries)

    def encode_passages(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode texts with the document's prompt and the query's depth, which is the same space, each as one chunk; gives (N, dim)."""
        return self._encode(self._passages, texts)

    def _encode(self, chunker: Chunker, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if isinstance(texts, str):
            raise TypeError("texts come as a list, also a single one: encode([text])")
        token_ids = chunker.chunk(list(texts))["token_ids"].combine_chunks()
        vectors_ND: npt.NDArray[np.float32] = self._encoder.encode(token_ids, max(BUDGET_TOKENS, self.spec.max_tokens)).vectors_ND
        return vectors_ND
