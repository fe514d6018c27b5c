"""What a calibrated exit counts each token by in its two learned means: its state, how rare it is, how far from the beginning.

V = token ids, T = layers from the embedding up, Q = queries of a layer, H = hidden size, X = H + 3: a state, the log of the
rarity, the place in units of LEAD_TOKENS, and one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

NUM_QUERIES = 2
LEAD_TOKENS = 20
"""By the starting query for the beginning, a token so far from it counts 1/e of what the first does."""
LEAST_RARITY = 0.1
"""Added to a rarity before its log: a token that every text holds counts 1% of the rarest, and not nothing."""


@dataclass(frozen=True, slots=True)
class AttentionPooling:
    """Rarity by token id, and the queries by layer: a token counts exp(query · (state, log rarity, place, 1))."""

    token_weights_V: Floats  # noqa: N815
    queries_TQX: Floats  # noqa: N815

    @property
    def hidden_size(self) -> int:
        """Numbers of a token's state."""
        return int(self.queries_TQX.shape[-1]) - 3

    @property
    def log_rarity_V(self) -> Floats:  # noqa: N802
        """What queries read of a token id."""
        logs_V: Floats = np.log(self.token_weights_V + np.float32(LEAST_RARITY))
        return logs_V


def start_attention_pooling(token_weights_V: Floats, num_layers: int, hidden_size: int) -> AttentionPooling:
    """Give the queries that training starts from: one weighs by rarity, one leans to the beginning, both the same for any state."""
    queries_TQX = np.zeros((num_layers + 1, NUM_QUERIES, hidden_size + 3), np.float32)
    queries_TQX[:, 0, -3] = 1
    queries_TQX[:, 1, -2] = -1
    return AttentionPooling(token_weights_V, queries_TQX)
