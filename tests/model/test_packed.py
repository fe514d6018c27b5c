"""Sequences laid end to end give what they give side by side, for every family that can be packed."""

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import embedder.model.varlen_attention as attention
from embedder.core.errors import ConfigError, ModelError
from embedder.core.spec import Pooling
from embedder.model.batches import LayoutName
from embedder.model.encoder import Encoder
from embedder.model.files.families import FAMILIES
from embedder.model.files.recipe import read_recipe
from embedder.model.loading import load_head_and_exit, load_transformer, resolve_layout
from embedder.model.parity_check import agree_on_backend, agree_on_layout, find_fault
from embedder.model.varlen_attention import Segments
from tests.model.conftest import CONFIGS, TinyModel
from tests.model.test_exits import DEPTHS, LAYERS, WEIGHING, calibrate

PACKED = [family for family in CONFIGS if FAMILIES[family].packed]


def load(model: TinyModel, layout: LayoutName, dtype: str = "float32", **embedding: Any) -> Encoder:
    return Encoder.load(model.resolve(**embedding).spec, dtype=dtype, layout=layout)


@pytest.mark.parametrize("family", PACKED)
def test_packed_sequences_give_the_vectors_of_padded_ones(family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = tiny_models(family)
    ids = model.tokenize(texts)
    padded = load(model, "padded").encode(ids, 512)
    packed = load(model, "packed").encode(ids, 512)
    np.testing.assert_allclose(packed.vectors_ND, padded.vectors_ND, atol=1e-5)
    assert packed.padded_tokens == len(ids.flatten()) < padded.padded_tokens


@pytest.mark.parametrize("family", PACKED)
def test_taps_of_packed_sequences_are_those_of_padded_ones(family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = tiny_models(family)
    ids = model.tokenize(texts)
    for pooling in ("cls", "last"):
        padded, packed = (load(model, layout, pooling=pooling).tap(ids, 512, [0, 1, 4], WEIGHING) for layout in ("padded", "packed"))
        for depth, states in padded.items():
            np.testing.assert_allclose(packed[depth], states, atol=1e-5 * max(1.0, float(np.abs(states).max())))


@pytest.mark.parametrize("family", PACKED)
def test_exits_of_packed_sequences_are_those_of_padded_ones(family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = tiny_models(family)
    ids, calibration = model.tokenize(texts), calibrate(model)
    padded, packed = (load(model, layout).tap_exits(ids, 512, LAYERS, DEPTHS, WEIGHING) for layout in ("padded", "packed"))
    np.testing.assert_allclose(packed.states_NF, padded.states_NF, atol=1e-5)
    np.testing.assert_allclose(packed.full_NW, padded.full_NW, atol=1e-5)
    for depth in DEPTHS:
        np.testing.assert_allclose(packed.native[depth], padded.native[depth], atol=1e-5)
    changes = {"depth": 2, "exit": "calibrated", "calibration": calibration.fingerprint}
    spec = model.resolve().spec.model_copy(update=changes)
    leaving = [Encoder.load(spec, dtype="float32", calibration=calibration, layout=layout) for layout in ("padded", "packed")]
    by_padding, by_packing = (encoder.encode(ids, 512).vectors_ND for encoder in leaving)
    np.testing.assert_allclose(by_packing, by_padding, atol=1e-5)


@pytest.mark.parametrize("family", PACKED)
def test_no_sequence_sees_its_neighbours(family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = tiny_models(family)
    encoder, rows = load(model, "packed"), model.tokenize(texts[:12]).to_pylist()
    alone = np.concatenate([encoder.encode(pa.array([row], pa.list_(pa.int32())), 4096).vectors_ND for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    others = [[3 + token % 20 for token in row] for row in rows]
    mixed = [rows[number] for number in order] + others
    together = encoder.encode(pa.array(mixed, pa.list_(pa.int32())), 4096).vectors_ND
    np.testing.assert_allclose(together[: len(rows)], alone[order], atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_every_pooling_is_by_segment(pooling: Pooling, tiny_model: TinyModel, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    padded, packed = (load(tiny_model, layout, pooling=pooling).encode(ids, 512).vectors_ND for layout in ("padded", "packed"))
    np.testing.assert_allclose(packed, padded, atol=1e-5)


@pytest.mark.parametrize(("family", "setting"), [("gemma3_text", "use_bidirectional_attention"), ("qwen3", "is_causal")])
def test_a_config_that_turns_causality_round_is_followed(
    family: str, setting: str, tiny_models: Callable[[str], TinyModel], texts: list[str], tmp_path: Path
) -> None:
    usual = tiny_models(family)
    other = TinyModel(shutil.copytree(usual.folder, tmp_path / "model"), family)
    config = other.folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {setting: False}))
    ids = usual.tokenize(texts)
    padded, packed = (load(other, layout).encode(ids, 512).vectors_ND for layout in ("padded", "packed"))
    np.testing.assert_allclose(packed, padded, atol=1e-5)
    assert np.abs(packed - load(usual, "packed").encode(ids, 512).vectors_ND).max() > 1e-3


def test_packed_bfloat16_stays_close_to_padded(tiny_model: TinyModel, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    padded, packed = (load(tiny_model, layout, "bfloat16").encode(ids, 512).vectors_ND for layout in ("padded", "packed"))
    assert (padded * packed).sum(axis=1).min() >= 0.999


def test_threads_that_share_packed_batches_change_nothing(tiny_model: TinyModel, texts: list[str]) -> None:
    encoder, ids = load(tiny_model, "packed"), tiny_model.tokenize(texts)
    alone, threads = encoder.tap(ids, 64, [1, 4]), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = encoder.tap(ids, 64, [1, 4])
    finally:
        torch.set_num_threads(threads)
    for depth in (1, 4):
        np.testing.assert_allclose(shared[depth], alone[depth], atol=1e-6)


def test_auto_packs_on_cuda_in_half_precision_where_the_family_can() -> None:
    assert resolve_layout("auto", "cuda", torch.bfloat16, "bert") == "packed"
    assert resolve_layout("auto", "cuda:1", torch.float16, "qwen3") == "packed"
    assert resolve_layout("auto", "cuda", torch.float32, "bert") == "padded"
    assert resolve_layout("auto", "cuda", torch.bfloat16, "mpnet") == "padded"
    assert resolve_layout("auto", "cpu", torch.bfloat16, "bert") == "padded"
    assert resolve_layout("packed", "cpu", torch.float32, "bert") == "packed"
    assert resolve_layout("padded", "cuda", torch.bfloat16, "bert") == "padded"


def test_what_cannot_be_packed_is_refused(tiny_models: Callable[[str], TinyModel]) -> None:
    with pytest.raises(ConfigError, match=r"compute\.layout=packed: family 'mpnet' has no attention over packed sequences; choose auto"):
        load(tiny_models("mpnet"), "packed")
    with pytest.raises(ConfigError, match=r"compute\.layout=packed: needs bfloat16 or float16 on cuda, not float32"):
        resolve_layout("packed", "cuda", torch.float32, "bert")


@pytest.mark.parametrize("fault", [torch.AcceleratorError("CUDA error: made up"), torch.OutOfMemoryError("made up")])
def test_a_device_that_fails_in_a_probe_is_not_taken_for_one_without_a_kernel(
    fault: RuntimeError, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> torch.Tensor:
        raise fault

    encoder = tiny_model.load()
    monkeypatch.setattr(Encoder, "probe_rows", fail)
    with pytest.raises(type(fault), match="made up"):
        find_fault(encoder, np.ones((1, 1)))
    with pytest.raises(type(fault), match="made up"):
        agree_on_backend(np.ones((1, 1)), lambda: encoder, "compiled")


def test_auto_goes_on_with_torch_where_a_kernel_cannot_be_built(tiny_model: TinyModel, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Encoder:
        raise CalledProcessError(1, ["gcc", "launcher.c"])

    expected_ND = tiny_model.load().probe_rows()
    assert agree_on_backend(expected_ND, fail, "auto", name="fused") is None
    assert "fused: Command '['gcc', 'launcher.c']' returned non-zero exit status 1.; going on with torch" in caplog.text
    with pytest.raises(ModelError, match=r"compute\.backend=fused: Command '\['gcc'"):
        agree_on_backend(expected_ND, fail, "fused")


def builder(model: TinyModel) -> Callable[[LayoutName], Encoder]:
    """Return a builder of encoders that share one transformer, like loading for a device."""
    spec, recipe = model.resolve().spec, read_recipe(model.folder)
    transformer = load_transformer(recipe, spec.depth, spec.final_norm, torch.float32)
    head, leave = load_head_and_exit(spec, recipe, None, None)
    return partial(Encoder, transformer, head, leave, spec.pooling, torch.device("cpu"))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_device_whose_packed_attention_is_right_keeps_it(family: str, tiny_models: Callable[[str], TinyModel]) -> None:
    model = tiny_models(family)
    ids = pa.array([[1, 4, 2], [1, 4, 5, 6, 2]], pa.list_(pa.int32()))
    assert agree_on_layout(builder(model), "auto").encode(ids, 512).padded_tokens == 8


def see_neighbours(*states: torch.Tensor | Any) -> torch.Tensor:
    query, key, value = states[:3]
    return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def have_no_kernel(*_: Any) -> torch.Tensor:
    raise RuntimeError("made up: no kernel")


@pytest.mark.parametrize(
    ("wrong", "named"), [(see_neighbours, r"a cosine of 0\.\d+ to the same"), (have_no_kernel, "does not run on this device \\(made up")]
)
def test_a_device_whose_packed_attention_is_wrong_goes_on_padded_or_is_refused(
    wrong: Callable[..., torch.Tensor],
    named: str,
    tiny_model: TinyModel,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = tiny_model.tokenize(texts)
    expected = load(tiny_model, "padded").encode(ids, 512)
    monkeypatch.setattr(attention, "attend_by_segment", wrong)
    encoded = agree_on_layout(builder(tiny_model), "auto").encode(ids, 512)
    assert encoded.padded_tokens == expected.padded_tokens
    np.testing.assert_array_equal(encoded.vectors_ND, expected.vectors_ND)
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "compute.layout=auto: " in warning.getMessage()
    assert "going on with padded batches" in warning.getMessage()
    with pytest.raises(ModelError, match=f"compute.layout=packed: .*{named}.*; choose auto or padded"):
        agree_on_layout(builder(tiny_model), "packed")


def test_a_packed_batch_that_is_too_large_is_halved(tiny_model: TinyModel, texts: list[str]) -> None:
    encoder, ids = load(tiny_model, "packed"), tiny_model.tokenize(texts)
    expected = encoder.encode(ids, 128).vectors_ND

    def run_out(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[1] > 256:
            raise torch.OutOfMemoryError("made up")

    encoder.layers[0].register_forward_pre_hook(run_out)
    encoded = encoder.encode(ids, 1024)
    assert encoded.token_budget == 256
    np.testing.assert_allclose(encoded.vectors_ND, expected, atol=1e-5)


def test_segments_are_what_the_rows_were(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Segments] = []
    attend = attention.attend_by_segment

    def watch(query: Any, key: Any, value: Any, segments: Segments, scaling: Any, window: Any) -> torch.Tensor:
        seen.append(segments)
        return attend(query, key, value, segments, scaling, window)

    monkeypatch.setattr(attention, "attend_by_segment", watch)
    load(tiny_model, "packed", depth=1).encode(pa.array([[1, 2], [1, 4, 5, 2], [1, 3, 2]], pa.list_(pa.int32())), 7)
    assert sorted((each.offsets_S.tolist(), each.longest) for each in seen) == [([0, 2], 2), ([0, 4, 7], 4)], "batches run side by side"
    assert all(each.offsets_S.dtype == torch.int32 for each in seen)
