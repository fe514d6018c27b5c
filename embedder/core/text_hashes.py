"""Texts → hashes that tell whether a text was seen before, whatever its spaces and line ends are."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


def hash_texts(texts: Iterable[str]) -> Hashes:
    """Return a hash of 64 bits for each text, equal for texts of the same words."""
    digests = [blake2b(" ".join(text.split()).encode(errors="replace"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), "<u8")


def count_seen(texts: Iterable[str], seen: Hashes) -> int:
    """Return how many texts were seen."""
    return int(np.isin(hash_texts(texts), seen).sum())
