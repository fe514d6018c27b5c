"""Token ids of a sample → inverse document frequencies, the weights of a pooling by rarity. V = token ids."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Counts = npt.NDArray[np.int64]


def count_tokens(token_ids: pa.ListArray, vocab_size: int) -> Counts:
    """Return the number of rows that hold each token id."""
    values, offsets = token_ids.values.to_numpy(), token_ids.offsets.to_numpy()
    rows = np.repeat(np.arange(len(token_ids), dtype=np.int64), np.diff(offsets))
    held = np.unique(rows * vocab_size + values[offsets[0] : offsets[-1]])
    return np.bincount(held % vocab_size, minlength=vocab_size)


def weigh_tokens(num_with_V: Counts, num_rows: int) -> npt.NDArray[np.float32]:
    """Return log((1 + rows) / (1 + rows with the token)) for each token id; a token in all rows has weight 0.

    Spärck Jones, A statistical interpretation of term specificity and its application in retrieval, 1972.
    """
    weights_V: npt.NDArray[np.float32] = np.log((1 + num_rows) / (1 + num_with_V)).astype(np.float32)
    return weights_V
