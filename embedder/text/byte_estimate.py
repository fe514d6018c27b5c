"""Documents → chunks without the model's tokenizer: a token counts as BYTES_PER_TOKEN bytes of UTF-8.

Bytes estimate tokens more evenly across languages than characters do, and no byte-level tokenizer has more tokens than there are bytes.
Chunks still end at words.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from embedder.core.context import Context, read_contexts
from embedder.core.spec import EmbeddingSpec
from embedder.text.chunking import CHUNKS, NO_CONTEXT, Chunker
from embedder.text.tokenizing import load_tokenizer

BYTES_PER_TOKEN = 3
_IN_TOKENS = ("max_tokens", "overlap_tokens", "context_tokens", "min_tokens")


def make_chunker(tokenizer_json: str, spec: EmbeddingSpec) -> "Chunker | EstimatingChunker":
    """Return a chunker that counts tokens, or bytes if there is no tokenizer."""
    return Chunker(load_tokenizer(tokenizer_json), spec) if tokenizer_json else EstimatingChunker(spec)


def chunk_counted(documents: pa.Table, tokenizer_json: str, spec: EmbeddingSpec) -> pa.Table:
    """Turn schema.DOCUMENTS into CHUNKS by a tokenizer, or by bytes if there is none."""
    return make_chunker(tokenizer_json, spec).chunk(documents["text"].to_pylist(), read_contexts(documents, spec))


@lru_cache(maxsize=1)
def make_byte_tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens are bytes, grouped into words as in byte-level BPE."""
    tokenizer = Tokenizer(BPE(vocab={byte: number for number, byte in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return tokenizer


class EstimatingChunker:
    """Cuts documents by bytes."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        in_bytes = {name: BYTES_PER_TOKEN * (getattr(spec, name) or 0) for name in _IN_TOKENS}
        self._most_bytes = in_bytes["max_tokens"]
        self._chunker = Chunker(make_byte_tokenizer(), spec.model_copy(update=in_bytes))
        self.write_chunks = self._chunker.write_chunks

    def chunk(self, texts: Sequence[str], contexts: Sequence[Context] | None = None) -> pa.Table:
        """Turn texts into CHUNKS without token ids, since there is no vocabulary; `num_tokens` is the estimate."""
        contexts = contexts or [NO_CONTEXT] * len(texts)
        arounds = [self._chunker.contexts.render(each.values) for each in contexts]
        sizes = np.array([len((each.before + text + each.after).encode()) for each, text in zip(arounds, texts, strict=True)], np.int32)
        sizes[[each.text_format == "html" for each in contexts]] = self._most_bytes + 1  # its tags do not count
        long = np.flatnonzero(sizes > self._most_bytes)
        cut = self._chunker.chunk([texts[number] for number in long.tolist()], [contexts[number] for number in long.tolist()])
        cut = cut.set_column(0, CHUNKS.field("document"), pa.array(long[cut["document"].to_numpy()].astype(np.int32)))
        chunks = pa.concat_tables([cut, self._whole(texts, sizes)]).sort_by([("document", "ascending"), ("chunk", "ascending")])
        estimated = -(-chunks["num_tokens"].to_numpy() // BYTES_PER_TOKEN)
        columns = {**{name: chunks[name] for name in CHUNKS.names}, "num_tokens": estimated, "token_ids": _no_ids(len(estimated))}
        return pa.table(columns, schema=CHUNKS)

    def _whole(self, texts: Sequence[str], sizes: npt.NDArray[np.int32]) -> pa.Table:
        """Return CHUNKS of the texts that fit, which need no tokenizer."""
        fits = np.flatnonzero(sizes <= self._most_bytes)
        zeros = np.zeros(len(fits), np.int32)
        ends = np.array([len(texts[number]) for number in fits.tolist()], np.int32)
        columns = {"document": fits.astype(np.int32), "chunk": zeros, "num_chunks": zeros + 1, "start_char": zeros, "end_char": ends}
        columns |= {"num_tokens": sizes[fits], "truncated": zeros.astype(np.bool_), "token_ids": _no_ids(len(fits))}
        return pa.table(columns, schema=CHUNKS)


def _no_ids(num_rows: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.zeros(num_rows + 1, np.int32)), pa.array([], pa.int32()))
