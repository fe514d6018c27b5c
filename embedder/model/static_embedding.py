"""A table of token vectors as a model of one layer, which passes the rows on: their mean is the vector of a text.

V = token ids, H = components, R = rows of a table that several ids share.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from embedder.core.errors import ModelError
from embedder.model.files.checksum import list_weights
from embedder.model.pickled import read_pickled

_TABLES = ({"embedding.weight"}, {"embeddings"}, {"embeddings", "mapping"}, {"embeddings", "weights"}, {"embeddings", "mapping", "weights"})
"""Names of the weights as sentence-transformers and model2vec save them."""


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


class StaticEmbeddingModel(PreTrainedModel):
    """The rows of a text's tokens as their states."""

    config_class = StaticEmbeddingConfig
    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, config: StaticEmbeddingConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(nn.Identity() for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        """Look up (B, L) ids: states (B, L, H)."""
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


def read_table(folder: Path) -> dict[str, Tensor]:
    """Read the rows by token id: model2vec's rows are shared by `mapping` (V → R) and scaled by `weights` (V)."""
    path = list_weights(folder)[-1]
    found = load_file(path) if path.suffix == ".safetensors" else read_pickled(path)
    if set(found) not in _TABLES:
        raise ModelError(f"{path.name}: holds {', '.join(sorted(found))}; a static embedding has embedding.weight, or model2vec's names")
    rows = found.get("embedding.weight", found.get("embeddings"))
    assert rows is not None
    if "mapping" in found:
        rows = rows[found["mapping"].long()]
    if "weights" in found:
        rows = rows.float() * found["weights"].float().unsqueeze(-1)
    return {"embedding.weight": rows.contiguous()}
