"""Token weights in the two learned means of a calibrated exit: by state, rarity and position.

V = token ids, T = layers from the embedding up, Q = queries of a layer, H = hidden size, X = H + 3: a state, the log of the
rarity, the position in units of LEAD_TOKENS, and one.
"""

from dataclasses import dataclass

import numpy as np

from embedder.core.quantization import Floats

NUM_QUERIES = 2
LEAD_TOKENS = 20
"""By the initial query for position, a token at this position weighs 1/e of the first."""
LEAST_RARITY = 0.1
"""Added to a rarity before its log: a token in every text weighs 1% of the rarest, not 0."""


@dataclass(frozen=True, slots=True)
class AttentionPooling:
    """Rarity by token id, and queries by layer: a token weighs exp(query · (state, log rarity, position, 1))."""

    token_weights_V: Floats  # noqa: N815
    queries_TQX: Floats  # noqa: N815

    @property
    def hidden_size(self) -> int:
        """Components of a token's state."""
        return int(self.queries_TQX.shape[-1]) - 3

    @property
    def log_rarity_V(self) -> Floats:  # noqa: N802
        """Log of the rarity by token id."""
        logs_V: Floats = np.log(self.token_weights_V + np.float32(LEAST_RARITY))
        return logs_V


def start_attention_pooling(token_weights_V: Floats, num_layers: int, hidden_size: int) -> AttentionPooling:
    """Return the initial queries: one by rarity, one by position, independent of the state."""
    queries_TQX = np.zeros((num_layers + 1, NUM_QUERIES, hidden_size + 3), np.float32)
    queries_TQX[:, 0, -3] = 1
    queries_TQX[:, 1, -2] = -1
    return AttentionPooling(token_weights_V, queries_TQX)
