"""A table of token vectors as a model of one layer, which passes the rows on: their mean is the vector of a text.

B = texts, L = tokens of the longest, H = components.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class StaticEmbeddingConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Sizes of the table."""

    model_type = "static_embedding"
    vocab_size: int = 1
    hidden_size: int = 1
    intermediate_size: int = 0
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    pad_token_id: int = 0
    max_position_embeddings: int = 1 << 20
    """Nothing depends on a position; a limit that no chunk reaches."""


class StaticEmbeddingModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """The rows of a text's tokens as their states."""

    config_class = StaticEmbeddingConfig
    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, config: StaticEmbeddingConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(nn.Identity() for _ in range(config.num_hidden_layers))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        """Look up (B, L) ids: states (B, L, H)."""
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=hidden)
