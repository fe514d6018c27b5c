"""A model's tokenizer files → the Rust tokenizer that AutoTokenizer loads, without truncation and padding."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence

from embedder.core.errors import ModelError
from embedder.model.files.json_files import file_errors, read_json
from embedder.model.files.recipe import ModelRecipe


def load_tokenizer(recipe: ModelRecipe) -> Tokenizer:
    """Load a model's tokenizer, lower-casing if its files request it; every id it returns has an embedding."""
    opened = _open_static(recipe.transformer_folder) if recipe.is_static else open_tokenizer(recipe.transformer_folder)
    tokenizer = _fit_vocabulary(opened, recipe.vocab_size)
    if recipe.lower_case:
        tokenizer.normalizer = Sequence([Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])])
    return tokenizer


def count_prompt_tokens(tokenizer: Tokenizer, prompt: str) -> int:
    """Return how many first tokens of a sequence sentence-transformers counts as the prompt's, special tokens before it included."""
    encoding = tokenizer.encode(prompt)
    return len(encoding.ids) - encoding.special_tokens_mask[-1] if prompt else 0


def _open_static(folder: Path) -> Tokenizer:
    """Load the tokenizer of a static embedding, which adds no special tokens to a text."""
    with file_errors("tokenizer.json"):
        written = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return Tokenizer.from_str(json.dumps(written | {"post_processor": None, "truncation": None, "padding": None}))


def open_tokenizer(folder: Path) -> Tokenizer:
    """Load the Rust tokenizer of AutoTokenizer, without truncation and padding."""
    _refuse_entries(read_json(folder / "tokenizer_config.json"))
    from transformers import AutoTokenizer  # imports torch: seconds

    with file_errors("tokenizer.json"):
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not loaded.is_fast:
        raise ModelError(f"tokenizer_config.json: {type(loaded).__name__} has no Rust tokenizer; add a tokenizer.json")
    tokenizer: Tokenizer = loaded.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


_REMOTE_CLASSES = ("tokenization_qwen.Qwen2TokenizerFast",)
"""Classes in model repositories that add only the end token of `add_eos_token`, as transformers' own class does."""


def _refuse_entries(config: dict[str, Any]) -> None:
    """Raise ModelError for code of the model's repository, files that the checksum does not cover, and calls other than the plain one."""
    remote = config.get("auto_map") or {}
    code = remote.get("AutoTokenizer") if isinstance(remote, dict) else remote
    codes = code if isinstance(code, list) else [code]
    if code and not any(str(each).endswith(_REMOTE_CLASSES) for each in codes):
        raise ModelError(f"tokenizer_config.json: auto_map.AutoTokenizer={code!r} is not supported; remote code is not run")
    others = sorted({*(config.get("fast_tokenizer_files") or ())} - {"tokenizer.json"})
    if others:
        raise ModelError(f"tokenizer_config.json: fast_tokenizer_files names {others[0]}; only tokenizer.json is supported")
    if config.get("split_special_tokens"):
        raise ModelError("tokenizer_config.json: split_special_tokens=true is not supported; give a tokenizer without it")


def _fit_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return the tokenizer without added tokens that lack an embedding; ModelError if another token lacks one.

    A text that contains such a token's name is tokenized as plain text. EmbeddingGemma has an `<image_soft_token>`.
    """
    ids = tokenizer.get_vocab()
    if max(ids.values()) >= vocab_size:
        written = json.loads(tokenizer.to_str())
        written["added_tokens"] = [token for token in written["added_tokens"] if token["id"] < vocab_size]
        tokenizer = Tokenizer.from_str(json.dumps(written))
        ids = tokenizer.get_vocab()
    special = tokenizer.encode("")  # the template of special tokens has its own ids
    for token, token_id in (*ids.items(), *zip(special.tokens, special.ids, strict=True)):
        if token_id >= vocab_size:
            raise ModelError(
                f"tokenizer.json: token {token!r} has id {token_id}, but the model has embeddings for ids 0 to {vocab_size - 1} "
                "(config.json: vocab_size); give the tokenizer that the model was saved with"
            )
    return tokenizer
