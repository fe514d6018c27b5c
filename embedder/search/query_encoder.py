"""The query side of a table: texts → vectors that may be compared with its own. Beneath it are torch and transformers only.

encoder = QueryEncoder.from_table("s3://bucket/table")
vectors = encoder.encode(["split a path into folder and file"])
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedder.core.errors import ModelError
from embedder.core.quantization import Floats
from embedder.core.rotation import read_rotation
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location, Options
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import locate_model, read_recipe
from embedder.model.resolve import load_tokenizer
from embedder.table.run_record import read_spec
from embedder.text.byte_estimate import make_chunker, slice_chunks

Embed = Callable[[pa.Table, Sequence[str]], npt.NDArray[np.float32]]
"""CHUNKS and their texts → vectors, of which it reads what it needs."""

BUDGET_TOKENS = 4096
"""Of one forward pass, or of one longer text."""


class QueryEncoder:
    """Encodes queries as a spec says: the query prompt in place of the document's, the same depth, pooling and dim."""

    def __init__(self, spec: EmbeddingSpec, device: str = "cpu", dtype: str = "float32", rotation_WW: Floats | None = None) -> None:
        self.spec, asked = spec, spec.for_queries()
        self._embed, tokenizer_json = open_api(asked) if spec.is_api else open_encoder(asked, device, dtype, rotation_WW)
        self._queries = Side(tokenizer_json, asked)
        self._passages = Side(tokenizer_json, asked.model_copy(update={"prompt": spec.prompt}))

    @classmethod
    def from_table(cls, uri: str, options: Options | None = None, device: str = "cpu", dtype: str = "float32") -> "QueryEncoder":
        """Make the encoder that matches a table; its model must be here under the name that the table's spec gives it."""
        table = Location(uri, options or {})
        spec = read_spec(table)
        return cls(spec, device, dtype, read_rotation(spec, table))

    def encode(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode queries, each cut at max_tokens; gives (N, dim)."""
        return self._encode(self._queries, queries)

    def encode_passages(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode texts with the document's prompt and the query's depth, which is the same space, each as one chunk; gives (N, dim)."""
        return self._encode(self._passages, texts)

    def _encode(self, side: "Side", texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if isinstance(texts, str):
            raise TypeError("texts come as a list, also a single one: encode([text])")
        chunks = side.chunker.chunk(list(texts))
        return self._embed(chunks, slice_chunks(texts, chunks, side.prompt))


class Side:
    """How texts of one side, queries or passages, are cut, each to one chunk, and what is put before them."""

    def __init__(self, tokenizer_json: str, spec: EmbeddingSpec) -> None:
        self.chunker, self.prompt = make_chunker(tokenizer_json, spec), spec.prompt


def open_encoder(spec: EmbeddingSpec, device: str, dtype: str, rotation_WW: Floats | None) -> tuple[Embed, str]:
    """Load a model that is here; gives what embeds CHUNKS, and the tokenizer."""
    tokenizer = load_tokenizer(read_recipe(locate_model(spec.model, spec.revision)[0]))
    encoder = Encoder.load(spec, device, dtype, rotation_WW=rotation_WW)

    def embed(chunks: pa.Table, _texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors_ND: npt.NDArray[np.float32]
        vectors_ND = encoder.encode(chunks["token_ids"].combine_chunks(), max(BUDGET_TOKENS, spec.max_tokens)).vectors_ND
        return vectors_ND

    return embed, tokenizer.to_str()


def open_api(spec: EmbeddingSpec) -> tuple[Embed, str]:
    """Reach a model behind an API; gives what embeds the texts of CHUNKS, and the tokenizer that counts."""
    from embedder.model.api_spec import open_counted  # extra openai

    encoder, tokenizer_json = open_counted(spec)

    def embed(_chunks: pa.Table, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        result = encoder.encode(texts)
        if result.refused:
            raise ModelError(next(iter(result.refused.values())))
        return result.vectors_ND

    return embed, tokenizer_json
