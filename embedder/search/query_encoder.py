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
from embedder.text.byte_estimate import EstimatingChunker, make_chunker
from embedder.text.chunking import Chunker

Embed = Callable[[pa.Table, Sequence[str]], Floats]
"""CHUNKS and their texts → vectors; an encoder reads the first, an API the second."""

BUDGET_TOKENS = 4096
"""Tokens per forward pass, or one longer text."""


class QueryEncoder:
    """Encodes queries by a spec: the query prompt instead of the document prompt, the same depth, pooling and dim."""

    def __init__(self, spec: EmbeddingSpec, device: str = "cpu", dtype: str = "float32", rotation_WW: Floats | None = None) -> None:
        self.spec, queries = spec, spec.for_queries()
        self._truncates_left = False if spec.is_api else find_recipe(spec).truncates_left
        load = partial(_load_encoder, device=device, dtype=dtype, rotation_WW=rotation_WW)
        self._embed, tokenizer_json = _load_api(queries) if spec.is_api else load(queries)
        sides = (queries, queries.model_copy(update={"prompt": spec.prompt, "adapter": spec.adapter}))
        is_shared = spec.adapter == queries.adapter and (spec.include_prompt or spec.prompt == queries.prompt)
        self._load_passages: Callable[[], Embed] = cache(lambda: self._embed if is_shared else load(sides[1])[0])
        self._queries, self._passages = (make_chunker(tokenizer_json, side) for side in sides)

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
        return self._encode(self._embed, self._queries, queries)

    def encode_passages(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of texts, each as one chunk, with the document's prompt and the query's depth (the same space): (N, dim)."""
        return self._encode(self._load_passages(), self._passages, texts)

    def _encode(self, embed: Embed, chunker: Chunker | EstimatingChunker, texts: Sequence[str]) -> Floats:
        if isinstance(texts, str):
            raise TypeError("texts must be a list, also for a single text: encode([text])")
        chunks = chunker.chunk(list(texts))
        if self._truncates_left and pc.any(chunks["truncated"]).as_py():
            most = self.spec.max_tokens
            raise ModelError(f"a text of more than {most} tokens: the tokenizer truncates on the left, which is not supported; shorten it")
        return embed(chunks, chunker.write_chunks(texts, chunks))


def _load_encoder(spec: EmbeddingSpec, device: str, dtype: str, rotation_WW: Floats | None) -> tuple[Embed, str]:
    """Load a local model; return its encoder of CHUNKS, and its tokenizer."""
    tokenizer = load_tokenizer(find_recipe(spec))
    encoder = Encoder.load(spec, device, dtype, rotation_WW=rotation_WW)

    def embed(chunks: pa.Table, _texts: Sequence[str]) -> Floats:
        vectors_ND: Floats = encoder.encode(chunks["token_ids"].combine_chunks(), max(BUDGET_TOKENS, spec.max_tokens)).vectors_ND
        return vectors_ND

    return embed, tokenizer.to_str()


def _load_api(spec: EmbeddingSpec) -> tuple[Embed, str]:
    """Connect to a model behind an API; return its encoder of texts, and the tokenizer that counts."""
    from embedder.model.api_spec import open_counted  # extra openai

    encoder, tokenizer_json = open_counted(spec)

    def embed(_chunks: pa.Table, texts: Sequence[str]) -> Floats:
        result = encoder.encode(texts)
        if result.refused:
            raise ModelError(next(iter(result.refused.values())))
        return result.vectors_ND

    return embed, tokenizer_json
