"""The arithmetic behind MFU, and that packing computes no padding."""

import numpy as np
import pytest
import torch

from embedder.benchmark.gpu_speed import TINY as TINY_SHAPES
from embedder.benchmark.random_models import draw_rows
from embedder.benchmark.throughput import (
    PROFILES,
    SHAPES,
    Shape,
    build_random_encoder,
    choose_layout,
    draw_lengths,
    flops_of,
    is_native,
    measure_throughput,
)
from embedder.core.errors import ConfigError
from embedder.model.float8 import Float8Linear
from jobs.throughput import main

TINY = Shape(2, 32, 2)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("minilm", 10.6),
        ("bert-base", 84.9),
        ("bert-large", 302.0),
        ("nomic", 113.2),
        ("modernbert-base", 110.3),
        ("qwen3-0.6b", 440.4),
    ],
)
def test_a_token_costs_two_operations_a_parameter_of_the_layers(name: str, millions: float) -> None:
    one_token = flops_of(SHAPES[name], np.array([1]))
    assert one_token == pytest.approx(2e6 * millions, rel=0.01)


def test_attention_grows_with_the_square_of_the_length() -> None:
    apart, together = flops_of(TINY, np.array([64, 64])), flops_of(TINY, np.array([128]))
    assert together - apart == 2 * 4 * 32 * (128**2 - 2 * 64**2)


def test_attention_counts_the_tokens_that_a_token_sees() -> None:
    apart, together = np.array([64, 64]), np.array([128])
    windowed = Shape(2, 64, 2, "modernbert", 96)  # the first layer sees all, the second 64 tokens back and ahead
    causal = Shape(2, 64, 2, "qwen3", 96, key_heads=1, head_width=32)
    assert flops_of(windowed, together) - flops_of(windowed, apart) == 2 * 4 * 64 * (128**2 - 2 * 64**2)
    assert flops_of(windowed, np.array([256])) - flops_of(windowed, np.array([128, 128])) == 4 * 64 * (256**2 - 2 * 128**2 + 256)
    assert flops_of(causal, together) - flops_of(causal, apart) == 2 * 2 * 64 * (128**2 - 2 * 64**2)


@pytest.mark.parametrize("name", ["nomic", "modernbert-base", "qwen3-0.6b"])
def test_shapes_of_other_families_run(name: str) -> None:
    rows = draw_rows(np.array([9, 4]), 1000)
    encoder = build_random_encoder(TINY_SHAPES[name], "cpu", "float32", "packed")
    assert encoder.encode(rows, 40).padded_tokens == 13


def test_mixed_lengths_are_128_on_average() -> None:
    lengths = draw_lengths("mixed", 1_000_000)
    assert lengths.mean() == pytest.approx(128, rel=0.05)
    assert lengths.max() == 512
    assert draw_lengths("64", 640).tolist() == [64] * 10


def test_float8_is_of_the_layers_and_measured_beside_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedder.benchmark.throughput.multiplies_bfloat16", lambda _: True)
    encoder = build_random_encoder(TINY, "cpu", "float8", "packed")
    assert {type(module) for module in encoder.layers.modules()} >= {Float8Linear}
    assert not any(isinstance(module, torch.nn.Linear) for module in encoder.layers.modules())
    found = measure_throughput(encoder, TINY, "float8", 2048, 1024, 1)
    assert all(each.tokens_per_second > 0 and each.mfu and each.mfu > 0 and each.padding == 0 for each in found)


def test_every_profile_is_measured_and_packing_pads_nothing() -> None:
    packed = measure_throughput(build_random_encoder(TINY, "cpu", "float32", "packed"), TINY, "float32", 4096, 1024, 1)
    padded = measure_throughput(build_random_encoder(TINY, "cpu", "float32", "padded"), TINY, "float32", 4096, 1024, 1)
    assert [each.profile for each in packed] == list(PROFILES)
    assert [each.padding for each in packed] == [0, 0, 0]
    assert padded[2].padding > 0
    assert all(each.tokens_per_second > 0 and each.mfu and each.mfu > 0 for each in (*packed, *padded))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8"])
def test_a_processor_that_emulates_a_dtype_is_no_measure_of_it(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedder.benchmark.throughput.multiplies_bfloat16", lambda _: False)
    assert [is_native("cpu", each) for each in (dtype, "float32")] == [False, True]
    found = measure_throughput(build_random_encoder(TINY, "cpu", "float32", "packed"), TINY, dtype, 2048, 1024, 1)
    assert [each.mfu for each in found] == [None] * len(PROFILES)


def test_float32_is_padded_on_a_gpu_which_packs_in_half_precision_alone() -> None:
    assert choose_layout(None, "cuda", "float32") == "padded"
    assert [choose_layout(None, "cuda", dtype) for dtype in ("bfloat16", "float16", "float8")] == ["packed"] * 3
    assert choose_layout(None, "cpu", "float32") == "packed"
    assert choose_layout("padded", "cpu", "float32") == "padded"
    with pytest.raises(ConfigError, match=r"compute\.layout=packed: needs bfloat16 or float16 on cuda"):
        choose_layout("packed", "cuda", "float32")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--depth", "-1"], "--rounds: must be 1 or more"),
        (["--depth", "0"], "must be 1 or more"),
        (["--rounds", "0"], "must be 1 or more"),
        (["--device", "cuda"], "torch finds no CUDA here"),
    ],
)
def test_a_measurement_that_makes_no_sense_is_refused(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as refused:
        main(["minilm", *flags])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_fused_layers_that_cannot_run_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"compute\.backend=fused: "):
        main(["minilm", "--device", "cpu", "--backend", "fused", "--layout", "padded"])
