"""Facts about models that their own files leave out, by hub name. Files and settings come first.

Source: each model's card, and mteb's definition of it.
"""

from dataclasses import dataclass
from types import MappingProxyType

from embedder.core.spec import Pooling


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Defaults of one model; None where its files are right."""

    document_prompt: str = ""
    query_prompt: str = ""
    pooling: Pooling | None = None
    normalize: bool | None = None
    layer_norm: bool | None = None
    include_prompt: bool | None = None


_PASSAGES = KnownModel(query_prompt="Represent this sentence for searching relevant passages: ")
_CHINESE = KnownModel(query_prompt="为这个句子生成表示以用于检索相关文章：")
_E5 = KnownModel("passage: ", "query: ")
_E5_INSTRUCT = KnownModel(query_prompt="Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ")
_NOMIC = ("search_document: ", "search_query: ")
_DOT = KnownModel(normalize=False)

KNOWN_MODELS = MappingProxyType(
    {
        **{f"BAAI/bge-{size}-en-v1.5": _PASSAGES for size in ("small", "base", "large")},
        **{f"BAAI/bge-{size}-zh-v1.5": _CHINESE for size in ("small", "base", "large")},
        **{f"intfloat/e5-{size}-v2": _E5 for size in ("small", "base", "large")},
        **{f"intfloat/multilingual-e5-{size}": _E5 for size in ("small", "base", "large")},
        "intfloat/multilingual-e5-large-instruct": _E5_INSTRUCT,
        "WhereIsAI/UAE-Large-V1": KnownModel(query_prompt=_PASSAGES.query_prompt, pooling="cls"),
        "mixedbread-ai/mxbai-embed-2d-large-v1": KnownModel(query_prompt=_PASSAGES.query_prompt, pooling="cls"),
        "nomic-ai/nomic-embed-text-v1": KnownModel(*_NOMIC, layer_norm=False),
        "nomic-ai/nomic-embed-text-v1.5": KnownModel(*_NOMIC, layer_norm=True),
        "cambridgeltl/SapBERT-from-PubMedBERT-fulltext": KnownModel(pooling="cls"),
        **{f"hkunlp/instructor-{size}": KnownModel(include_prompt=False) for size in ("base", "large", "xl")},
        "facebook/contriever-msmarco": KnownModel(pooling="mean", normalize=False),
        "sentence-transformers/multi-qa-mpnet-base-dot-v1": _DOT,
        "sentence-transformers/msmarco-distilbert-base-tas-b": _DOT,
    }
)
