"""Token ids of a sample → what each id counts in a mean that is weighted by rarity. V = token ids."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Counts = npt.NDArray[np.int64]


def count_tokens(token_ids: pa.ListArray, vocab_size: int) -> Counts:
    """Count for each token id the rows that hold it."""
    values, offsets = token_ids.values.to_numpy(), token_ids.offsets.to_numpy()
    rows = np.repeat(np.arange(len(token_ids), dtype=np.int64), np.diff(offsets))
    held = np.unique(rows * vocab_size + values[offsets[0] : offsets[-1]])
    return np.bincount(held % vocab_size, minlength=vocab_size)


def weigh_tokens(num_with_V: Counts, num_rows: int) -> npt.NDArray[np.float32]:
    """Weigh token ids by the rows that hold each, as log((1 + all) / (1 + those with it)); one that all rows hold counts nothing.

    Spärck Jones, A statistical interpretation of term specificity and its application in retrieval, 1972.
    """
    weights_V: npt.NDArray[np.float32] = np.log((1 + num_rows) / (1 + num_with_V)).astype(np.float32)
    return weights_V
