"""A step that compares whole calls, from texts to vectors, with sentence-transformers in bfloat16, in turn on the same texts."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from embedder.benchmark.check_record import Bench, Item
from embedder.benchmark.gpu_speed import shape_of
from embedder.benchmark.random_models import least_cosine
from embedder.benchmark.throughput import Shape, draw_lengths
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.model.encoder import Encoder
from embedder.model.resolve import ResolvedModel, resolve_model

WORDS = 30_518
SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
ROUNDS = 3
BATCH_SIZES = (32, 128, 512)
Run = Callable[[], np.ndarray]


def peer(bench: Bench) -> Iterator[Item]:
    """Compare by model."""
    for name in ("bert-large", "minilm"):
        yield name, partial(compare_with_peer, bench, name)


def compare_with_peer(bench: Bench, name: str) -> dict[str, Any]:
    """Return tokens a second of both from texts to vectors, the median ratio of rounds run A B A B, and the least cosine between them."""
    if find_spec("sentence_transformers") is None:
        return {"skipped": "sentence-transformers is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(Path(folder), shape_of(bench, name))
        lengths = draw_lengths("mixed", 2_048 if bench.is_tiny else 262_144)
        texts = draw_texts(lengths)
        attention, theirs, batch_size = load_peer(bench, folder, texts)
        ours = load_ours(bench, folder, texts)
    tokens = int(lengths.sum())
    runs: dict[str, Run] = {"theirs": partial(theirs, texts), "ours": ours}
    vectors = {key: run() for key, run in runs.items()}
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(ROUNDS):
        for key, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - started)
    ratio = statistics.median(a / b for a, b in zip(seconds["theirs"], seconds["ours"], strict=True))
    cosine = least_cosine(vectors["ours"], vectors["theirs"])
    rates = {f"{key} tokens/s": tokens / statistics.median(taken) for key, taken in seconds.items()}
    return {"ok": cosine >= 0.99, "ratio": ratio, **rates, "cosine": cosine, "attention": attention, "batch_size": batch_size}


def save_random_model(folder: Path, shape: Shape) -> None:
    """Save a BERT of random weights in bfloat16 with a tokenizer of made-up words."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *(f"w{number}" for number in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    wrapped: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **SPECIAL)  # type: ignore[no-untyped-call]
    wrapped.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden_size,
        initializer_range=0.05,
        pad_token_id=0,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = BertModel(config, add_pooling_layer=False)
    model.to(torch.bfloat16).save_pretrained(folder)


def draw_texts(lengths: np.ndarray) -> list[str]:
    """Return texts of so many tokens each, [CLS] and [SEP] counted."""
    draw = np.random.default_rng(0)
    return [" ".join(f"w{number}" for number in draw.integers(0, WORDS, max(1, length - 2))) for length in lengths]


def load_peer(bench: Bench, folder: str, texts: list[str]) -> tuple[str, Callable[[list[str]], np.ndarray], int]:
    """Return sentence-transformers with the fastest attention and batch size that run here."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    found: list[tuple[float, str, Any, int]] = []
    for attention in ("flash_attention_2", "sdpa"):
        try:
            transformer = Transformer(folder, model_kwargs={"dtype": torch.bfloat16, "attn_implementation": attention})
            model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")], device=bench.device)
            model.encode(texts[:8])
        except (ImportError, ValueError, RuntimeError):  # as a machine without flash-attn raises
            continue
        for batch_size in BATCH_SIZES:
            model.encode(texts[:batch_size], batch_size=batch_size)
            started = time.perf_counter()
            model.encode(texts, batch_size=batch_size)
            found.append((time.perf_counter() - started, attention, model, batch_size))
    _, attention, model, batch_size = min(found, key=lambda each: each[0])
    return attention, partial(_encode_theirs, model, batch_size), batch_size


def _encode_theirs(model: Any, batch_size: int, texts: list[str]) -> np.ndarray:
    return np.asarray(model.encode(texts, batch_size=batch_size, normalize_embeddings=True), np.float32)


def load_ours(bench: Bench, folder: str, texts: list[str]) -> Run:
    """Return the call that tokenizes and encodes, with what auto chooses."""
    resolved = resolve_model(EmbeddingConfig(model=folder), ChunkingConfig())
    encoder = Encoder.load(resolved.spec, bench.device, "bfloat16")
    tokenizer = Tokenizer.from_str(resolved.tokenizer_json)
    budget = 512 if bench.is_tiny else encoder.find_token_budget()
    return lambda: encoder.encode(_tokenize(tokenizer, resolved, texts), budget).vectors_ND


def _tokenize(tokenizer: Tokenizer, resolved: ResolvedModel, texts: list[str]) -> pa.ListArray:
    tokenizer.enable_truncation(resolved.spec.max_tokens)
    encodings = tokenizer.encode_batch_fast(texts)
    offsets = np.cumsum([0, *(len(encoding.ids) for encoding in encodings)], dtype=np.int32)
    token_ids = np.concatenate([np.asarray(encoding.ids, np.int32) for encoding in encodings])
    return pa.ListArray.from_arrays(offsets, token_ids)
