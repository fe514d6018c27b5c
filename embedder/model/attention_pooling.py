"""Token weights in the learned means of a calibrated exit: by state, rarity and position.

V = token ids, T = layers from the embedding up, Q = queries of a layer, H = hidden size, X = H + 3: a state, the log of the
rarity, the position in units of LEAD_TOKENS, and one.
"""

from dataclasses import dataclass

import numpy as np

from embedder.core.quantization import Floats

STARTS = ((1, 0), (0, -1), (2, 0), (0, 0.5))
"""Initial queries: what the log of the rarity, and the position, count. A part of them is its first ones."""
UNQUERIED = 2
"""Poolings of a layer without a learned query: the mean, and the token that gathers the text."""
LEAD_TOKENS = 20
"""By the second initial query, a token at this position weighs 1/e of the first."""
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
    def num_poolings(self) -> int:
        """Pooled states of a layer."""
        return UNQUERIED + int(self.queries_TQX.shape[1])

    @property
    def log_rarity_V(self) -> Floats:  # noqa: N802
        """Log of the rarity by token id."""
        logs_V: Floats = np.log(self.token_weights_V + np.float32(LEAST_RARITY))
        return logs_V


def start_attention_pooling(token_weights_V: Floats, num_layers: int, hidden_size: int, num_queries: int = len(STARTS)) -> AttentionPooling:
    """Return the initial queries, by rarity and by position, independent of the state."""
    queries_TQX = np.zeros((num_layers + 1, num_queries, hidden_size + 3), np.float32)
    queries_TQX[..., -3:-1] = STARTS[:num_queries]
    return AttentionPooling(token_weights_V, queries_TQX)
