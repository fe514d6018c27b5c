"""jina-embeddings-v2, which transformers does not have: BERT with a bias of distance (ALiBi) for positions, and gated feed-forward blocks.

B = sequences, L = tokens of the longest, A = heads, E = components of a head, H = hidden size.
"""

from functools import partial
from math import floor, log2
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class JinaBertConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The entries of the published config.json that change a vector."""

    model_type = "jina_bert"
    vocab_size: int = 30_528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 8192
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    has_more_norms: bool = False
    """Whether queries, keys and the block of attention have norms of their own: code, de, es and zh."""


class JinaBertLayer(nn.Module):
    """Attention and a gated feed-forward block, each with its norm after the sum. Modules are named as in the published weights."""

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        size, inner, self.num_heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        norm, self.has_more_norms = partial(nn.LayerNorm, size, eps=config.layer_norm_eps), config.has_more_norms
        mixing: dict[str, nn.Module] = {name: nn.Linear(size, size) for name in ("query", "key", "value")}
        up, down = nn.Linear(size, 2 * inner, bias=False), nn.Linear(inner, size)
        if config.has_more_norms:
            mixing |= {"layer_norm_q": norm(), "layer_norm_k": norm()}
            self.layer_norm_1, self.layer_norm_2 = norm(), norm()
            self.mlp = nn.ModuleDict({"up_gated_layer": up, "down_layer": down})
        else:
            self.mlp = nn.ModuleDict({"gated_layers": up, "wo": down, "layernorm": norm()})
        output = nn.ModuleDict({"dense": nn.Linear(size, size), "LayerNorm": norm()})
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(mixing), "output": output})

    def forward(self, hidden_BLH: Tensor, bias: Tensor) -> Tensor:
        """Return the next states, (B, L, H); the bias is added to the scores, (1 or B, A, L, L)."""
        attended = self._attend(hidden_BLH, bias)
        if not self.has_more_norms:
            gate, up = self.mlp["gated_layers"](attended).chunk(2, dim=-1)
            return self.mlp["layernorm"](attended + self.mlp["wo"](functional.gelu(gate) * up))  # type: ignore[no-any-return]
        attended = self.layer_norm_1(hidden_BLH + attended)
        up, gate = self.mlp["up_gated_layer"](attended).chunk(2, dim=-1)
        return self.layer_norm_2(attended + self.mlp["down_layer"](up * functional.gelu(gate)))  # type: ignore[no-any-return]

    def _attend(self, hidden_BLH: Tensor, bias: Tensor) -> Tensor:
        mixing: Any = self.attention["self"]
        query, key, value = (mixing[name](hidden_BLH) for name in ("query", "key", "value"))
        if self.has_more_norms:
            query, key = mixing["layer_norm_q"](query), mixing["layer_norm_k"](key)
        query, key, value = (states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for states in (query, key, value))
        mixed_BALE = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        output: Any = self.attention["output"]
        normed: Tensor = output["LayerNorm"](hidden_BLH + output["dense"](mixed_BALE.transpose(1, 2).flatten(2)))
        return normed


class JinaBertModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Token and type embeddings, and the layers."""

    config_class = JinaBertConfig
    _supports_sdpa = True

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        words, types = nn.Embedding(config.vocab_size, size), nn.Embedding(config.type_vocab_size, size)
        norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.embeddings = nn.ModuleDict({"word_embeddings": words, "token_type_embeddings": types, "LayerNorm": norm})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(JinaBertLayer(config) for _ in range(config.num_hidden_layers))})
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """Run (B, L) ids; the mask, (B, 1, 1, L), is true where a token may be attended to."""
        embeddings: Any = self.embeddings
        types = embeddings["token_type_embeddings"].weight[0]
        hidden = embeddings["LayerNorm"](embeddings["word_embeddings"](input_ids) + types)
        bias = bias_distances(self.config.num_attention_heads, input_ids.shape[1], hidden)
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask, torch.finfo(bias.dtype).min)
        layers: Any = self.encoder["layer"]
        for layer in layers:
            hidden = layer(hidden, bias)
        return BaseModelOutput(last_hidden_state=hidden)


def bias_distances(num_heads: int, num_tokens: int, like: Tensor) -> Tensor:
    """Return minus a head's slope times the distance of two tokens: (1, A, L, L)."""
    places_L = torch.arange(num_tokens, device=like.device)
    distances_LL = (places_L - places_L.unsqueeze(-1)).abs()
    slopes_A = torch.tensor(list_slopes(num_heads), device=like.device)
    return (-slopes_A[:, None, None] * distances_LL).unsqueeze(0).to(like.dtype)


def list_slopes(num_heads: int) -> list[float]:
    """Return powers of 2^(-8 / A); if A is not a power of two, those of the next lower one, then every other of the next higher one."""
    lower = 2 ** floor(log2(num_heads))
    slopes = [2 ** (-8 * number / lower) for number in range(1, lower + 1)]
    between = [2 ** (-4 * number / lower) for number in range(1, 2 * lower + 1, 2)]
    return slopes + between[: num_heads - lower]
