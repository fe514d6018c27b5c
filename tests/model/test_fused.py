"""Fused layers give the states of plain ones, family by family; layers of another shape are refused by name."""

import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from embedder.benchmark.random_models import CONFIGS, build_encoder, draw_rows, least_cosine
from embedder.core.errors import ModelError
from embedder.model.files.families import FAMILIES
from embedder.model.float8 import use_float8
from embedder.model.fused import fuse_layers

interpreted = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1", reason="install triton and set TRITON_INTERPRET=1"
)
FUSED = [name for name in CONFIGS if name in FAMILIES and FAMILIES[name].fused]


@interpreted
@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.999999), (torch.bfloat16, 0.9995)])
def test_fused_layers_give_what_plain_ones_give(family: str, dtype: torch.dtype, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # the interpreter runs in one thread
    rows = draw_rows(np.array([70, 1, 9]), 1000)  # some tokens are farther apart than a window
    plain, fused = (build_encoder(family, "cpu", dtype, "packed", depth=2) for _ in range(2))
    fused.fuse_layers()
    assert fused.weight_bytes == plain.weight_bytes
    expected, found = (encoder.tap(rows, 80, [0, 1, 2]) for encoder in (plain, fused))
    assert min(least_cosine(found[depth], expected[depth]) for depth in (0, 1, 2)) >= least


@interpreted
def test_fused_float8_is_near_plain_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    rows = draw_rows(np.array([30, 1, 17, 3]), 1000)
    plain, fused = (build_encoder("bert", "cpu", torch.bfloat16, "packed", depth=1) for _ in range(2))
    for encoder in (plain, fused):
        use_float8(encoder.layers)
    fused.fuse_layers()
    assert least_cosine(fused.encode(rows, 60).vectors_ND, plain.encode(rows, 60).vectors_ND) >= 0.95


@interpreted
@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_offered_layers_switch_between_torch_and_fused_kernels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr("embedder.model.encoder.has_kernels", lambda: True)
    encoder, rows = build_encoder(family, "cpu", torch.float32, "packed", depth=1), draw_rows(np.array([9, 4]), 1000)
    expected = encoder.encode(rows, 40).vectors_ND
    encoder.offer_fused()
    assert encoder.backends == ("torch", "fused")
    np.testing.assert_array_equal(encoder.encode(rows, 40).vectors_ND, expected)
    encoder.use_backend("fused")
    fused = encoder.encode(rows, 40).vectors_ND
    assert np.abs(fused - expected).max() > 0
    assert least_cosine(fused, expected) >= 0.999999
    encoder.use_backend("torch")
    np.testing.assert_array_equal(encoder.encode(rows, 40).vectors_ND, expected)


@interpreted
def test_auto_goes_on_with_torch_where_a_kernel_does_not_fit_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    def fail(*_: object) -> None:
        raise OutOfResources(200_000, 100_000, "shared memory")

    monkeypatch.setattr("embedder.model.encoder.has_kernels", lambda: True)
    monkeypatch.setattr("embedder.model.fused_rotary.gate_rows", fail)
    encoder, rows = build_encoder("nomic_bert", "cpu", torch.float32, "packed", depth=1), draw_rows(np.array([9, 4]), 1000)
    expected = encoder.encode(rows, 40).vectors_ND
    encoder.offer_fused()
    assert encoder.backends == ("torch",)
    np.testing.assert_array_equal(encoder.encode(rows, 40).vectors_ND, expected)


def test_families_and_precisions_without_fused_layers_are_refused_by_name() -> None:
    distilbert, nomic = (build_encoder(family, "cpu", torch.bfloat16, "packed", depth=1) for family in ("distilbert", "nomic_bert"))
    with pytest.raises(ModelError, match=r"family 'distilbert' has no fused layers; bert, .*modernbert, nomic_bert, qwen2, qwen3"):
        distilbert.fuse_layers()
    use_float8(nomic.layers)
    with pytest.raises(ModelError, match=r"'nomic_bert' has no fused layers in float8; compute\.backend=compiled"):
        nomic.fuse_layers()


def test_an_activation_without_a_kernel_is_refused_by_name() -> None:
    layers, config = torch.nn.ModuleList(), build_encoder("qwen3", "cpu", torch.float32, "packed", depth=1)._config
    config.hidden_act = "relu"
    with pytest.raises(ModelError, match=r"activation 'relu' \(config.json\) has no fused layers; silu, swish, gelu"):
        fuse_layers(layers, config)
