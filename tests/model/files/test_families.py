"""Every family equals sentence-transformers and transformers' hidden states, on random weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel

from embedder.model.files.families import FAMILIES
from embedder.model.files.model_config import find_class
from tests.model.conftest import CONFIGS

COSINE = 0.99999


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def skip_final_norm(family: str) -> dict[str, str]:
    return {"final_norm": "skip"} if FAMILIES[family].final_norm else {}


def pool_by_hand(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states)), mask.sum(1) - 1]
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def pad_by_hand(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def project_by_hand(full: Any, pooled: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return full.embedding_projection(pooled) if hasattr(full, "embedding_projection") else pooled


def load_full(model: Any, **settings: Any) -> Any:
    own = FAMILIES[model.family].model_class
    return (find_class(own) if own else AutoModel).from_pretrained(model.folder, **settings).eval()


@pytest.mark.parametrize("family", CONFIGS)
def test_full_depth_equals_sentence_transformers(family: str, tiny_models: Callable[[str], Any], texts: list[str]) -> None:
    model = tiny_models(family)
    expected = model.reference().encode(texts)
    if family == "nomic_bert":
        expected = functional.layer_norm(torch.from_numpy(expected), (64,)).numpy()
    encoded = model.load().encode(model.tokenize(texts), 512).vectors_ND
    assert cosines(encoded, expected).min() >= COSINE
    assert np.abs(np.linalg.norm(encoded, axis=1) - 1).max() <= 1e-6
    assert cosines(encoded[:1].repeat(len(texts) - 1, 0), encoded[1:]).max() < 0.999, "vectors are too similar to detect a fault"


@pytest.mark.parametrize("family", CONFIGS)
def test_depth_equals_the_hidden_states_of_the_full_model(family: str, tiny_models: Callable[[str], Any], texts: list[str]) -> None:
    model = tiny_models(family)
    spec, ids = model.resolve().spec, model.tokenize(texts)
    full = load_full(model, dtype=torch.float32)
    padded, mask = pad_by_hand(ids.to_pylist(), full.config.pad_token_id)
    with torch.inference_mode():
        states = full(input_ids=padded, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == 5
    for depth in (1, 3):
        encoder = model.load(depth=depth, layer_norm=False, **skip_final_norm(family))
        encoded = encoder.encode(ids, 1_000_000).vectors_ND
        pooled = project_by_hand(full, pool_by_hand(states[depth], mask, spec.pooling))
        expected = functional.normalize(pooled, dim=-1).numpy()
        assert len(encoder.layers) == depth
        assert cosines(encoded, expected).min() >= COSINE
        np.testing.assert_allclose(encoded, expected, atol=2e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_an_unpadded_batch_equals_the_hidden_states_bit_for_bit(family: str, tiny_models: Callable[[str], Any]) -> None:
    model = tiny_models(family)
    encoder = model.load(depth=2, pooling="cls", layer_norm=False, normalize=False, **skip_final_norm(family))
    (row,) = model.tokenize(["the cat sat on a mat"]).to_pylist()
    ids = pa.array([row, row[::-1]], pa.list_(pa.int32()))
    full = load_full(model, dtype=torch.float32, attn_implementation=FAMILIES[family].attention)
    with torch.inference_mode():
        states = full(input_ids=torch.tensor(ids.to_pylist()), output_hidden_states=True).hidden_states
        expected = project_by_hand(full, states[2][:, 0]).numpy()
    np.testing.assert_array_equal(encoder.encode(ids, 512).vectors_ND, expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_padding_and_batch_composition_do_not_change_a_vector(family: str, tiny_models: Callable[[str], Any], texts: list[str]) -> None:
    model = tiny_models(family)
    encoder, ids = model.load(), model.tokenize(texts[:12])
    alone = encoder.encode(ids, 1).vectors_ND
    for token_budget in (200, 100_000):
        assert np.abs(encoder.encode(ids, token_budget).vectors_ND - alone).max() <= 1e-5


@pytest.mark.parametrize("family", [name for name in CONFIGS if FAMILIES[name].final_norm])
def test_the_final_norm_is_applied_unless_skipped(family: str, tiny_models: Callable[[str], Any], texts: list[str]) -> None:
    model = tiny_models(family)
    ids = model.tokenize(texts)
    applied = model.load(depth=2).encode(ids, 512).vectors_ND
    skipped = model.load(depth=2, final_norm="skip").encode(ids, 512).vectors_ND
    assert cosines(applied, skipped).max() < 0.9999


@pytest.mark.parametrize("family", CONFIGS)
def test_bfloat16_stays_close_to_float32(family: str, tiny_models: Callable[[str], Any], texts: list[str]) -> None:
    model = tiny_models(family)
    ids = model.tokenize(texts)
    exact, rounded = (model.load(dtype).encode(ids, 512).vectors_ND for dtype in ("float32", "bfloat16"))
    near = cosines(exact, rounded)
    assert near.mean() >= 0.998
    assert near.min() >= 0.99  # one text of a family's random weights, on processors that multiply in bfloat16 themselves
