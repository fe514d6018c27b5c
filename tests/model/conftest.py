"""Tiny models with seeded random weights, of every family, in the layout that sentence-transformers itself writes."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast, Qwen2Tokenizer

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.model.encoder import Encoder
from embedder.model.files.families import FAMILIES
from embedder.model.files.model_config import find_class
from embedder.model.resolve import ResolvedModel, resolve_model

TEXT = "the cat sat on a mat while dogs ran far from home and birds sang in old trees by cold river stones under bright stars"
WORDS = TEXT.split()
SPECIAL = {"bert": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "roberta": ["<s>", "<pad>", "</s>", "<unk>"]}
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "initializer_range": 0.2,
}
WINDOWED = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = SHAPE | GROUPED | {"max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 1.2}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
    "llama_4_scaling_beta": 0.1,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", SHAPE | {"max_position_embeddings": 128}),
    "roberta": ("RobertaConfig", SHAPE | {"max_position_embeddings": 130}),
    "xlm-roberta": ("XLMRobertaConfig", SHAPE | {"max_position_embeddings": 130}),
    "camembert": ("CamembertConfig", SHAPE | {"max_position_embeddings": 130}),
    "mpnet": ("MPNetConfig", SHAPE | {"max_position_embeddings": 130}),
    "distilbert": (
        "DistilBertConfig",
        {
            "vocab_size": 64,
            "dim": 64,
            "n_layers": 4,
            "n_heads": 4,
            "hidden_dim": 96,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
        },
    ),
    "modernbert": (
        "ModernBertConfig",
        SHAPE | WINDOWED | {"local_attention": 8, "max_position_embeddings": 128, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "nomic_bert": ("NomicBertConfig", SHAPE | {"max_position_embeddings": 128}),
    "qwen3": ("Qwen3Config", SHAPE | GROUPED | {"max_position_embeddings": 128}),
    "gemma3_text": (
        "Gemma3TextConfig",
        SHAPE
        | GROUPED
        | WINDOWED
        | {"use_bidirectional_attention": True, "sliding_window": 8, "query_pre_attn_scalar": 16, "max_position_embeddings": 128},
    ),
    "embedding_gemma2_text": (
        "EmbeddingGemma2TextConfig",
        DECODER
        | {
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 32,
            "embedding_dim": 80,
        },
    ),
    "qwen2": ("Qwen2Config", DECODER | {"is_causal": False}),
    "llama": ("LlamaConfig", DECODER | {"is_causal": False}),
    "ministral3": ("Ministral3Config", DECODER | {"rope_parameters": YARN, "is_causal": False}),
    "mistral": ("MistralConfig", DECODER | {"sliding_window": 8}),
    "gemma2": ("Gemma2Config", DECODER | WINDOWED | {"sliding_window": 8, "query_pre_attn_scalar": 16}),
    "eurobert": ("EuroBertConfig", DECODER | {"mask_token_id": 3}),
    "jina_embeddings_v3": ("JinaEmbeddingsV3Config", SHAPE | {"max_position_embeddings": 128, "pad_token_id": 0}),
    "gte": ("GteConfig", SHAPE | {"max_position_embeddings": 128, "pad_token_id": 0, "rope_parameters": LINEAR}),
    "t5": (
        "T5Config",
        {
            "vocab_size": 64,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 4,
            "num_heads": 4,
            "n_positions": 128,
            "initializer_factor": 2.0,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 24,
            "feed_forward_proj": "gated-gelu",
        },
    ),
    "albert": ("AlbertConfig", SHAPE | {"embedding_size": 32, "max_position_embeddings": 128}),
    "electra": ("ElectraConfig", SHAPE | {"embedding_size": 32, "max_position_embeddings": 128}),
    "deberta-v2": (
        "DebertaV2Config",
        SHAPE
        | {
            "max_position_embeddings": 128,
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
}
DISTINCT = [family for family in CONFIGS if family not in ("camembert", "qwen2", "llama", "ministral3", "electra", "eurobert")]
DISTINCT.remove("jina_embeddings_v3")
"""Families without those whose layers are another one's under another name, for the tests that take seconds a family."""
POOLING = {"qwen2": "lasttoken", "qwen3": "lasttoken", "mistral": "lasttoken", "gemma2": "lasttoken", "bert": "cls"}
ENDS_ONLY = ("qwen3", "mistral", "gemma2", "t5")
"""Families whose tokenizers add a token at the end of a text alone."""


@dataclass(frozen=True)
class TinyModel:
    """A saved model, what it resolves to, and the token ids of texts as the CPU stage would make them."""

    folder: Path
    family: str

    def resolve(self, max_tokens: int | None = None, **embedding: Any) -> ResolvedModel:
        files = tuple(sorted((str(path), path.stat().st_mtime_ns) for path in self.folder.rglob("*")))
        return resolve_once(files, EmbeddingConfig(model=str(self.folder), **embedding), ChunkingConfig(max_tokens=max_tokens))

    def load(self, dtype: str = "float32", **embedding: Any) -> Encoder:
        return Encoder.load(self.resolve(**embedding).spec, dtype=dtype)

    def tokenize(self, texts: list[str]) -> pa.ListArray:
        resolved = self.resolve()
        return tokenize(resolved, texts)

    def reference(self) -> SentenceTransformer:
        return SentenceTransformer(str(self.folder), device="cpu", model_kwargs={"dtype": torch.float32})


@cache
def resolve_once(files: tuple[tuple[str, int], ...], embedding: EmbeddingConfig, chunking: ChunkingConfig) -> ResolvedModel:
    """Resolve a model as long as its files stay the same: checking its weights takes a tenth of a second, a thousand times over."""
    return resolve_model(embedding, chunking)


def tokenize(resolved: ResolvedModel, texts: list[str]) -> pa.ListArray:
    tokenizer = Tokenizer.from_str(resolved.tokenizer_json)
    tokenizer.enable_truncation(resolved.spec.max_tokens)
    encodings = tokenizer.encode_batch([resolved.spec.prompt + text for text in texts])
    return pa.array([encoding.ids for encoding in encodings], pa.list_(pa.int32()))


def build_byte_level() -> Qwen2Tokenizer:
    """Build the one tokenizer that transformers rebuilds from its vocabulary; as gte-Qwen2's, it ends a text by a token."""
    words = sorted({*WORDS, *(f"Ġ{word}" for word in WORDS)})
    merges = list(dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word))))
    characters = [*SPECIAL["bert"], *sorted({*"".join(words)})]
    merges = merges[: SHAPE["vocab_size"] - len(characters)]
    tokens = [*characters, *("".join(merge) for merge in merges)]
    first, last, pad = SPECIAL["bert"][1], SPECIAL["bert"][2], SPECIAL["bert"][0]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return Qwen2Tokenizer(vocabulary, merges, unk_token=first, eos_token=last, pad_token=pad, add_eos_token=True, model_max_length=128)


def build_tokenizer(family: str) -> PreTrainedTokenizerFast:
    if family == "qwen2":
        return build_byte_level()
    pad_is_one = family in ("roberta", "xlm-roberta", "camembert", "mpnet")
    special = SPECIAL["roberta" if pad_is_one else "bert"]
    first, last, pad, unknown = (special[i] for i in ((0, 2, 1, 3) if pad_is_one else (1, 2, 0, 3)))
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = f"$A {last}" if family in ENDS_ONLY else f"{first} $A {last}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, cls_token=first, sep_token=last, model_max_length=128
    )


def save_transformer(folder: Path, family: str) -> None:
    class_name, settings = CONFIGS[family]
    torch.manual_seed(0)
    config = getattr(transformers, class_name)(**settings)
    own = FAMILIES[family].model_class
    model = find_class(own)(config) if own else AutoModel.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            centre = 0.0 if name.endswith("bias") or family.startswith("gemma") else 1.0
            torch.nn.init.normal_(parameter, mean=centre, std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    model.save_pretrained(folder)
    build_tokenizer(family).save_pretrained(folder)


@pytest.fixture(scope="session", autouse=True)
def _quiet_libraries() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices of 64 columns gain nothing from threads, and waiting for them on a busy machine costs most of the time."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """Save a tiny model: its family, and the modules after pooling."""

    def save(family: str, *modules: torch.nn.Module, pooling: str | tuple[str, ...] | None = None, **settings: Any) -> TinyModel:
        folder = tmp_path_factory.mktemp(family)
        save_transformer(folder / "plain", family)
        transformer = Transformer(str(folder / "plain"), **settings)
        stack = [transformer, Pooling(64, pooling or POOLING.get(family, "mean")), *modules]
        SentenceTransformer(modules=stack, device="cpu").save(str(folder / "model"), create_model_card=False)
        return TinyModel(folder / "model", family)

    return save


@pytest.fixture(scope="session")
def tiny_models(save_model: Callable[..., TinyModel]) -> Callable[[str], TinyModel]:
    """Return the plain tiny model of a family; it is saved once."""
    saved: dict[str, TinyModel] = {}

    def give(family: str) -> TinyModel:
        if family not in saved:
            saved[family] = save_model(family)
        return saved[family]

    return give


@pytest.fixture(scope="session")
def tiny_model(tiny_models: Callable[[str], TinyModel]) -> TinyModel:
    return tiny_models("bert")


@pytest.fixture
def folder(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A copy of the tiny model to edit."""
    return Path(shutil.copytree(tiny_model.folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: TinyModel) -> Encoder:
    return tiny_model.load()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Thirty texts of 1 to some 100 words, in no order of length; two are longer than any tiny model's 128 tokens."""
    draw = random.Random(0)
    lengths = [draw.randint(1, 100) for _ in range(26)] + [1, 2, 140, 300]
    draw.shuffle(lengths)
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]
