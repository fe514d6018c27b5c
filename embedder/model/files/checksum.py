"""A model's folder → one checksum over the files that decide a vector, equal wherever the same files lie."""

import hashlib
import json
import re
from pathlib import Path

from safetensors import safe_open

from embedder.core.errors import ModelError
from embedder.model.files.st_layout import blaming, read_json

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


def list_weights(folder: Path) -> list[Path]:
    """Give the safetensors files that transformers will load; a folder with other weights only is refused."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        with blaming(index.name):
            shards = sorted(set(read_json(index)["weight_map"].values()))
        lacking = [name for name in shards if not (folder / name).is_file()]
        if lacking:
            raise ModelError(f"{index.name}: {lacking[0]} is not there ({len(lacking)} of {len(shards)} files missing); download it again")
        return [index, *(folder / name for name in shards)]
    found = [path.name for path in sorted(folder.glob("*.bin"))]
    if found:
        raise ModelError(f"{found[0]}: pickled weights are not loaded; save the model once with save_pretrained() to get {WEIGHTS}")
    raise ModelError(f"no {WEIGHTS} in {folder.name!r}; give a folder with weights, or a hub name")


def compute_checksum(folder: Path, transformer_folder: Path, module_folders: tuple[Path, ...]) -> str:
    """Hash weights, config, tokenizer and every module's files; weights that are not whole are refused.

    Prompts and lengths are in the spec already and do not count.
    """
    files = {transformer_folder / "config.json", folder / "modules.json", *list_weights(transformer_folder)}
    files |= {transformer_folder / name for name in TOKENIZER_FILES}
    files |= set(transformer_folder.glob("sentence_*_config.json"))
    for module_folder in module_folders:
        files |= {path for path in module_folder.iterdir() if path.suffix in (".json", ".safetensors")}
    for path in files:
        if path.suffix == ".safetensors":
            with blaming(path.relative_to(folder).as_posix()), safe_open(path, "np"):
                pass  # reads the header, and holds what it says against the size of the file
    hashes = sorted((path.relative_to(folder).as_posix(), _hash_file(path)) for path in files if path.is_file())
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    """Hash a file's content; a hub cache names a large file by that hash already."""
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
