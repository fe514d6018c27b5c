"""A model's folder → the files that decide a vector, and one checksum over them, independent of the folder's location."""

import hashlib
import json
import re
from pathlib import Path

from safetensors import safe_open

from embedder.core.errors import ModelError
from embedder.model.files.adapters import CONFIG as ADAPTER_CONFIG
from embedder.model.files.adapters import WEIGHTS as ADAPTER_WEIGHTS
from embedder.model.files.adapters import Adapters, read_scale
from embedder.model.files.json_files import file_errors, read_json
from embedder.model.files.st_layout import Layout

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"
"""Loaded if a folder has no safetensors, and only by torch's loader that builds tensors and runs nothing else."""
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
    """Return the files of weights that transformers will load, safetensors first; ModelError if there are none or some are missing."""
    for weights in (WEIGHTS, PICKLED):
        if (folder / weights).is_file():
            return [folder / weights]
        index = folder / f"{weights}.index.json"
        if index.is_file():
            return [index, *_list_shards(index)]
    raise ModelError(f"no {WEIGHTS} in {folder.name!r}, nor {PICKLED}; give a folder with weights, or a hub name")


def _list_shards(index: Path) -> list[Path]:
    with file_errors(index.name):
        shards = sorted(set(read_json(index)["weight_map"].values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(f"{index.name}: {missing[0]} not found ({len(missing)} of {len(shards)} files missing); download it again")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    others = [name for name in shards if Path(name).suffix != suffix]
    if others:
        raise ModelError(f"{index.name}: {others[0]} is not a {suffix} file; save the model once with save_pretrained()")
    return [index.parent / name for name in shards]


def list_files(folder: Path, layout: Layout, adapters: Adapters | None) -> set[Path]:
    """Return the weights, config, tokenizer and every module's and adapter's files, some of which may not exist.

    Prompts and lengths are fields of the spec.
    """
    transformer_folder = layout.transformer_folder
    files = {transformer_folder / "config.json", folder / "modules.json", *layout.routers, *list_weights(transformer_folder)}
    files |= {transformer_folder / name for name in TOKENIZER_FILES}
    files |= set(transformer_folder.glob("sentence_*_config.json"))
    for adapter_folder in adapters.folders.values() if adapters else ():
        read_scale(adapter_folder)
        files |= {adapter_folder / ADAPTER_CONFIG, adapter_folder / ADAPTER_WEIGHTS}
    for module_folder in layout.module_folders:
        files |= {path for path in module_folder.iterdir() if path.suffix in (".json", ".safetensors")}
        if not (module_folder / WEIGHTS).is_file():
            files.add(module_folder / PICKLED)
    return files


def compute_checksum(folder: Path, files: set[Path]) -> str:
    """Return a hash of the files' names and contents; ModelError if a weights file is truncated."""
    for path in files:
        if path.suffix == ".safetensors":
            with file_errors(path.relative_to(folder).as_posix()), safe_open(path, "np"):
                pass  # compares the header with the file's size
    hashes = sorted((path.relative_to(folder).as_posix(), _hash_file(path)) for path in files if path.is_file())
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    """Return a file's sha256; a hub cache names large files by it."""
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
