"""Tiny models of every family. Every byte is written here, so that a checksum depends neither on torch nor on transformers."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
WORDS = ["river", "engine", "violin", "harbor", "lantern", "proof", "granite", "orchard", "copper", "whale", "signal", "bread"]
WORDS += ["the", "a", "of", "in"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = [*SPECIAL, *CHARACTERS, *(f"##{each}" for each in CHARACTERS), *".,:;#<>/", *WORDS]
MOST_TOKENS = 64

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}
PAD_IS_ONE = SHAPE | {"pad_token_id": 1}
WINDOWED = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
DISTILBERT = {
    "vocab_size": 128,
    "dim": 64,
    "n_layers": 4,
    "n_heads": 4,
    "hidden_dim": 96,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SHAPE,
    "roberta": PAD_IS_ONE,
    "xlm-roberta": PAD_IS_ONE,
    "camembert": PAD_IS_ONE,
    "mpnet": PAD_IS_ONE,
    "distilbert": DISTILBERT,
    "modernbert": SHAPE | WINDOWED | {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    "nomic_bert": SHAPE,
    "qwen3": SHAPE | GROUPED,
    "gemma3_text": SHAPE | GROUPED | WINDOWED | {"use_bidirectional_attention": True, "sliding_window": 8, "query_pre_attn_scalar": 16},
}
RUN_SHAPE = SHAPE | {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "type_vocab_size": 2,
}
"""Of the BERT that is really run."""


def write_family(folder: Path, family: str) -> None:
    """Write a folder that resolves to a spec; its weights are one tensor, because a dry run reads only their checksum."""
    _write_transformer(folder, family, FAMILIES[family])
    _write_weights(folder, {"word_embeddings.weight": (128, 4)})


def write_layout(folder: Path) -> None:
    """Write a BERT in the layout of sentence-transformers, with pooling, a Dense module, prompts and a length of its own."""
    write_family(folder, "bert")
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    paths = ("", "1_Pooling", "2_Dense", "3_Normalize")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths[1:]:
        (folder / path).mkdir()
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 64, "pooling_mode_cls_token": True})
    dense = {"in_features": 64, "out_features": 32, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    _write_json(folder / "2_Dense/config.json", dense)
    _write_weights(folder / "2_Dense", {"linear.weight": (32, 64), "linear.bias": (32,)})
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": True})
    prompts = {"prompts": {"query": "find: ", "document": "text: "}, "truncate_dim": 24}
    _write_json(folder / "config_sentence_transformers.json", prompts)


def write_run_model(folder: Path) -> None:
    """Write a BERT of 2 layers and 16 components, with all its weights."""
    _write_transformer(folder, "bert", RUN_SHAPE)
    width, inner = RUN_SHAPE["hidden_size"], RUN_SHAPE["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (RUN_SHAPE["vocab_size"], width),
        "embeddings.position_embeddings.weight": (RUN_SHAPE["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (RUN_SHAPE["type_vocab_size"], width),
    }
    linear = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": (width, width), "intermediate.dense": (inner, width), "output.dense": (width, inner)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(RUN_SHAPE["num_hidden_layers"]):
        for name, shape in linear.items():
            shapes |= {f"encoder.layer.{layer}.{name}.weight": shape, f"encoder.layer.{layer}.{name}.bias": shape[:1]}
        norms += [f"encoder.layer.{layer}.{name}.LayerNorm" for name in ("attention.output", "output")]
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    _write_weights(folder, shapes)


def _write_transformer(folder: Path, family: str, shape: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", {"model_type": family, **shape})
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MOST_TOKENS, **names})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    template = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    pair = [*template, {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    around = {token: {"id": token, "ids": [VOCABULARY.index(token)], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(SPECIAL)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": template, "pair": pair, "special_tokens": around},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: number for number, token in enumerate(VOCABULARY)},
        },
    }
    _write_json(folder / "tokenizer.json", tokenizer)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")


def _write_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write model.safetensors byte by byte: integers modulo a prime, which no library rounds in a way of its own."""
    header: dict[str, Any] = {}
    blocks: list[bytes] = []
    start = 0
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        counted = (np.arange(int(np.prod(shape)), dtype=np.int64) + 1) * 7919 * (number + 1) ** 2
        values = (counted * counted % 2003).astype(np.float32) / np.float32(2003) - np.float32(0.5)
        if name.endswith("LayerNorm.weight"):
            values = values / np.float32(4) + np.float32(1)
        blocks.append(values.astype("<f4").tobytes())
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, start + len(blocks[-1])]}
        start += len(blocks[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))
