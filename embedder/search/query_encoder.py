"""Encodes queries in a table's space: texts → vectors that may be compared with the table's. Needs torch and transformers only.

encoder = QueryEncoder.from_table("s3://bucket/table")
vectors = encoder.encode(["split a path into folder and file"])
"""

from collections.abc import Callable, Sequence
from functools import cache, partial

import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.errors import ModelError
from embedder.core.quantization import Floats
from embedder.core.rotation import read_rotation
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location, Options
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import find_recipe
from embedder.model.files.tokenizer import load_tokenizer
from embedder.search.table_model import choose_model
from embedder.table.run_record import read_record
from embedder.text.byte_estimate import make_chunker

Embed = Callable[[pa.Table, Sequence[str]], Floats]
"""CHUNKS and their texts → vectors; an encoder reads the first, an API the second."""

BUDGET_TOKENS = 4096
"""Tokens per forward pass, or one longer text."""


class QueryEncoder:
    """Encodes queries by a spec: the query prompt instead of the document prompt, the same depth, pooling and dim."""

    def __init__(self, spec: EmbeddingSpec, device: str = "cpu", dtype: str = "float32", rotation_WW: Floats | None = None) -> None:
        self.spec, queries, passages = spec, spec.for_queries(), spec.for_passages()
        load = partial(_load_encoder, device=device, dtype=dtype, rotation_WW=rotation_WW)
        self._queries = _load_api(queries) if spec.is_api else load(queries)
        is_shared = (passages.route, passages.adapter) == (queries.route, queries.adapter)
        is_shared &= spec.include_prompt or passages.prompt == queries.prompt
        self._load_passages = cache(lambda: self._queries.for_spec(passages) if is_shared else load(passages))

    @classmethod
    def from_table(
        cls, uri: str, options: Options | None = None, device: str = "cpu", dtype: str = "float32", model: str | None = None
    ) -> "QueryEncoder":
        """Load the encoder that matches a table, by the name in the table's log or by `model`, which package:NAME needs."""
        table = Location(uri, options or {})
        spec = choose_model(read_record(table).spec, model)
        return cls(spec, device, dtype, read_rotation(spec, table))

    def encode(self, queries: Sequence[str]) -> Floats:
        """Return the vectors of queries, each truncated at max_tokens: (N, dim)."""
        return self._queries.encode(queries)

    def encode_passages(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of texts, each as one chunk, with the document's prompt and the query's depth (the same space): (N, dim)."""
        return self._load_passages().encode(texts)


class _Side:
    """An encoder of texts, which chunks them as its spec says."""

    def __init__(self, spec: EmbeddingSpec, embed: Embed, tokenizer_json: str, truncates_left: bool = False) -> None:
        self.spec, self.chunker, self._opened = spec, make_chunker(tokenizer_json, spec), (embed, tokenizer_json, truncates_left)

    def for_spec(self, spec: EmbeddingSpec) -> "_Side":
        """Return a side with the same model."""
        return _Side(spec, *self._opened)

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of texts: (N, dim)."""
        if isinstance(texts, str):
            raise TypeError("texts must be a list, also for a single text: encode([text])")
        embed, _, truncates_left = self._opened
        chunks = self.chunker.chunk(list(texts))
        if truncates_left and pc.any(chunks["truncated"]).as_py():
            most = self.spec.max_tokens
            raise ModelError(f"a text of more than {most} tokens: the tokenizer truncates on the left, which is not supported; shorten it")
        return embed(chunks, self.chunker.write_chunks(texts, chunks))


def _load_encoder(spec: EmbeddingSpec, device: str, dtype: str, rotation_WW: Floats | None) -> _Side:
    """Load a local model."""
    recipe = find_recipe(spec)
    encoder = Encoder.load(spec, device, dtype, rotation_WW=rotation_WW)

    def embed(chunks: pa.Table, _texts: Sequence[str]) -> Floats:
        vectors_ND: Floats = encoder.encode(chunks["token_ids"].combine_chunks(), max(BUDGET_TOKENS, spec.max_tokens)).vectors_ND
        return vectors_ND

    return _Side(spec, embed, load_tokenizer(recipe).to_str(), recipe.truncates_left)


def _load_api(spec: EmbeddingSpec) -> _Side:
    """Connect to a model behind an API."""
    from embedder.model.api_spec import open_counted  # extra openai

    encoder, tokenizer_json = open_counted(spec)

    def embed(_chunks: pa.Table, texts: Sequence[str]) -> Floats:
        result = encoder.encode(texts)
        if result.refused:
            raise ModelError(next(iter(result.refused.values())))
        return result.vectors_ND

    return _Side(spec, embed, tokenizer_json)
