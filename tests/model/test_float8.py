"""Linear modules in float8: near the exact product whatever the rows are like, and near the exact vectors in every family."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_mm

from embedder.calibrate.config import CalibrateConfig
from embedder.config.embed import EmbedConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.model import float8
from embedder.model.encoder import Encoder
from embedder.model.files.families import FAMILIES
from embedder.model.float8 import FLOAT8, LARGEST, Float8Linear, check_device, encode_rows, use_float8
from embedder.model.loading import resolve_backend, resolve_dtype
from tests.model.conftest import DISTINCT, TinyModel
from tests.model.test_exits import WEIGHING, calibrate


def make_linear(wide: int = 256, given: int = 64, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(wide, given, bias=bias, dtype=torch.bfloat16).requires_grad_(False)


def draw_rows(count: int = 40, wide: int = 256) -> torch.Tensor:
    """Draw tokens of which every tenth is a hundred thousand times as large as the others."""
    rows = torch.randn(count, wide, generator=torch.Generator().manual_seed(1))
    rows[::10] *= 1e5
    return rows.bfloat16()


def errors_of(given: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Return each row's error as a share of its length."""
    return (given.float() - exact).norm(dim=1) / exact.norm(dim=1)


@pytest.mark.parametrize("bias", [True, False])
def test_torch_2_11_has_no_product_on_a_cpu_and_gives_the_same_numbers(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    linear, rows = Float8Linear(make_linear(bias=bias)), draw_rows()
    expected = linear(rows)
    monkeypatch.setattr(float8, "_HAS_CPU_PRODUCT", False)
    monkeypatch.setattr(float8, "scaled_mm", None)
    torch.testing.assert_close(linear(rows), expected, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_near_the_exact_one_beside_rows_far_larger(bias: bool) -> None:
    linear, rows = make_linear(bias=bias), draw_rows()
    exact = nn.functional.linear(rows.float(), linear.weight.float(), None if linear.bias is None else linear.bias.float())
    ours = errors_of(Float8Linear(linear)(rows), exact)
    assert ours.max() < 0.05
    one_scale = rows.float().abs().max() / LARGEST
    coarse = (rows.float() / one_scale).to(FLOAT8).float() * one_scale
    theirs = errors_of(nn.functional.linear(coarse, linear.weight.float(), None if linear.bias is None else linear.bias.float()), exact)
    small = torch.arange(len(rows)) % 10 != 0
    assert theirs[small].median() > 2 * ours[small].median(), "one scale for all tokens, with exact weights even"


def test_states_keep_their_shape_whatever_it_is() -> None:
    coarse, rows = Float8Linear(make_linear()), draw_rows()
    flat = coarse(rows)
    torch.testing.assert_close(coarse(rows.reshape(2, 5, 4, 256)), flat.reshape(2, 5, 4, 64))
    apart = rows.reshape(5, 8, 256).transpose(0, 1)
    assert not apart.is_contiguous()
    torch.testing.assert_close(coarse(apart).transpose(0, 1).reshape(40, 64), flat)


def test_zeros_give_the_bias_and_the_smallest_and_largest_numbers_no_nan() -> None:
    linear, rows = make_linear(), draw_rows()
    rows[3], rows[4], rows[5] = 0, 1e-38, torch.finfo(torch.bfloat16).max / 1e4
    given = Float8Linear(linear)(rows)
    torch.testing.assert_close(given[3], linear.bias)
    torch.testing.assert_close(given[4], linear.bias)
    assert given.isfinite().all()
    linear.weight[7] = 0
    assert (Float8Linear(linear)(rows)[:, 7] == linear.bias[7]).all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_a_number_spoils_its_own_token_alone(broken: float) -> None:
    coarse, rows = Float8Linear(make_linear()), draw_rows()
    expected = coarse(rows)
    rows[8, 5] = broken
    given = coarse(rows)
    assert not given[8].isfinite().any()
    kept = torch.arange(len(rows)) != 8
    torch.testing.assert_close(given[kept], expected[kept])


def test_a_token_does_not_depend_on_those_beside_it() -> None:
    coarse, rows = Float8Linear(make_linear()), draw_rows()
    torch.testing.assert_close(coarse(rows[:4])[1:], coarse(rows[1:4]), rtol=0, atol=0)


def test_every_row_uses_the_whole_range_of_codes() -> None:
    codes, scales = encode_rows(draw_rows())
    assert (codes.float().abs().amax(dim=1) == LARGEST).all()
    assert scales.shape == (40, 1)
    assert scales.dtype == torch.float32


def on_cuda(value: Any) -> Any:
    """Return a stand-in of the same shape and layout for a GPU that is absent."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda") if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("count", [1, 7, 64])
@pytest.mark.parametrize("is_apart", [False, True])
def test_a_product_is_laid_out_as_a_gpu_takes_it(count: int, is_apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch checks CUDA's rules on shapes alone."""
    shapes = []

    def multiply(*args: Any, **kwargs: Any) -> torch.Tensor:
        row_major = args[1].contiguous()
        with FakeTensorMode():
            shapes.append(scaled_mm(*map(on_cuda, args), **{name: on_cuda(value) for name, value in kwargs.items()}).shape)
            with pytest.raises(RuntimeError, match="col_major"):
                scaled_mm(on_cuda(args[0]), on_cuda(row_major), *map(on_cuda, args[2:]), output_dtype=torch.bfloat16)
        return scaled_mm(*args, **kwargs)

    monkeypatch.setattr(float8, "scaled_mm", multiply)
    rows = torch.randn(2, 256, count).bfloat16().transpose(1, 2) if is_apart else torch.randn(2, count, 256).bfloat16()
    assert Float8Linear(make_linear())(rows).shape == (2, count, 64)
    assert shapes == [(2 * count, 64)]


def cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    return (a_ND * b_ND).sum(axis=1)


@pytest.mark.parametrize("family", [family for family in DISTINCT if FAMILIES[family].float8])
def test_every_family_stays_near_its_exact_vectors(family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = tiny_models(family)
    ids = model.tokenize(texts)
    exact, half = (model.load(dtype) for dtype in ("float32", "bfloat16"))
    coarse = model.load("auto", float8=True)
    replaced = [module for module in coarse.layers.modules() if isinstance(module, Float8Linear)]
    assert len(replaced) == sum(isinstance(module, nn.Linear) for module in half.layers.modules()) >= 4 * 4
    assert not any(isinstance(module, nn.Linear) for module in coarse.layers.modules())
    found, expected = coarse.encode(ids, 512).vectors_ND, exact.encode(ids, 512).vectors_ND
    assert cosines(found, expected).mean() >= 0.95, "random weights this large make much of every error, layer by layer"
    assert cosines(found, expected).min() < cosines(half.encode(ids, 512).vectors_ND, expected).min(), "it really was float8"
    shallow, one = (model.load(dtype, depth=1, float8=dtype == "auto").encode(ids, 512).vectors_ND for dtype in ("auto", "float32"))
    assert cosines(shallow, one).mean() >= 0.985
    in_layers = sum(each.weight.nbytes for each in half.layers.modules() if isinstance(each, nn.Linear))
    saved = half.weight_bytes - coarse.weight_bytes
    assert 0.4 * in_layers < saved < 0.5 * in_layers, "half of the weights, less their scales"
    if FAMILIES[family].packed:
        packed = Encoder.load(model.resolve(float8=True).spec, layout="packed").encode(ids, 512).vectors_ND
        assert cosines(packed, found).mean() > cosines(found, expected).mean(), "another layout changes less than float8 does"


def test_a_family_without_float8_is_refused_by_name(tiny_models: Callable[[str], TinyModel]) -> None:
    with pytest.raises(ConfigError, match=r"embedding\.float8=true: family 't5' has no products in float8"):
        tiny_models("t5").resolve(float8=True)


def test_taps_and_calibrated_exits_are_those_of_layers_in_float8(tiny_model: TinyModel, texts: list[str]) -> None:
    ids, calibration = tiny_model.tokenize(texts), calibrate(tiny_model)
    coarse = tiny_model.load("auto", float8=True)
    tapped = coarse.tap(ids, 512, [0, 2, 4], WEIGHING)
    exact = tiny_model.load().tap(ids, 512, [0, 2, 4], WEIGHING)
    for depth, states in tapped.items():
        share = np.linalg.norm(states - exact[depth], axis=1) / np.linalg.norm(exact[depth], axis=1)
        assert share.mean() < 0.2
        assert depth == 0 or share.min() > 0.01
    update = {"depth": 2, "exit": "calibrated", "query_depth": 4, "calibration": calibration.fingerprint}
    leaving = tiny_model.resolve().spec.model_copy(update=update)
    found, expected = (
        Encoder.load(leaving.model_copy(update={"float8": is_coarse}), dtype="bfloat16", calibration=calibration)
        .encode(ids, 512)
        .vectors_ND
        for is_coarse in (True, False)
    )
    assert 0.95 <= cosines(found, expected).min() < 0.9999


def test_layouts_are_compared_before_layers_are_replaced(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that holds shapes only, which is no CPU."""
    agreed = []

    def agree(build: Callable[[str], Encoder], _asked: str) -> Encoder:
        encoder = build("packed")
        agreed.append([type(module) for module in encoder.layers.modules()])
        return encoder

    monkeypatch.setattr("embedder.model.encoder.agree_on_layout", agree)
    coarse = Encoder.load(tiny_model.resolve(float8=True).spec, "meta", layout="packed")
    [compared] = agreed
    assert nn.Linear in compared
    assert Float8Linear not in compared
    assert nn.Linear not in [type(module) for module in coarse.layers.modules()]


def test_a_compiled_product_is_one_step_that_dynamo_does_not_trace() -> None:
    linear = Float8Linear(nn.Linear(32, 48).bfloat16().requires_grad_(False))
    steps: list[str] = []

    def keep_steps(graph: torch.fx.GraphModule, _: Any) -> Any:
        steps.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    states = torch.randn(5, 32, dtype=torch.bfloat16)
    found = torch.compile(linear, backend=keep_steps, fullgraph=True, dynamic=True)(states)
    assert "embedder.multiply_codes.default" in steps
    assert not any("scaled_mm" in step for step in steps)
    torch.testing.assert_close(found, linear(states))
    given = (*encode_rows(states), linear.codes_OI, linear.scales_1O, linear.bias)
    torch.library.opcheck(float8.multiply_as_one_step, given, test_utils="test_faketensor")


def test_it_is_a_space_of_its_own_whose_queries_are_exact(tiny_model: TinyModel) -> None:
    plain, coarse = tiny_model.resolve().spec, tiny_model.resolve(float8=True).spec
    assert plain.differences(coarse) == ["float8: False → True"]
    assert coarse.for_queries().space_id == plain.for_queries().space_id


def test_emulation_is_said_once(tiny_model: TinyModel, caplog: pytest.LogCaptureFixture) -> None:
    float8.warn_of_emulation.cache_clear()
    with caplog.at_level(logging.WARNING, logger="embedder"):
        tiny_model.load("auto", float8=True)
        tiny_model.load("auto", float8=True, depth=1)
    [message] = caplog.messages
    assert "is emulated on a CPU" in message


def test_a_width_that_cannot_be_multiplied_is_refused_before_anything_is_read(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model.folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if "intermediate" in name or (name.endswith("output.dense.weight") and "attention" not in name)]:
        weights[name] = torch.zeros([100 if size == config["intermediate_size"] else size for size in weights[name].shape])
    save_file(weights, folder / "model.safetensors")
    other = TinyModel(folder, "bert")
    named = r"widths must be multiples of 16, not so 0\.intermediate\.dense \(64 to 100\), 8 modules in all; leave it out"
    with pytest.raises(ConfigError, match=named):
        other.resolve(float8=True)
    other.resolve()
    with pytest.raises(ModelError, match=r"0 \(24 to 64\), 1 modules"):
        use_float8(nn.ModuleList([nn.Linear(24, 64)]))


def test_a_gpu_without_float8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ConfigError, match=r"embedding.float8=true: cuda has compute capability 8\.0, products in float8 need 8\.9"):
        resolve_dtype("auto", "cuda", "bert", float8=True)
    for capability in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        check_device("cuda")
    check_device("cpu")


def test_what_does_not_go_with_it_is_refused(tiny_model: TinyModel) -> None:
    for dtype in ("float32", "float16"):
        with pytest.raises(ConfigError, match=f"compute.dtype={dtype}: around embedding.float8 all is bfloat16"):
            resolve_dtype(dtype, "cpu", "bert", float8=True)
    with pytest.raises(ConfigError, match=r"compute.backend=openvino: has no products in float8"):
        resolve_backend("openvino", "cpu", torch.bfloat16, "padded", float8=True)
    assert resolve_backend("auto", "cpu", torch.bfloat16, "padded", float8=True) == "torch"
    sections: dict[str, Any] = {"source": {"uri": "in"}, "embedding": {"model": "m", "float8": True}, "output": {"uri": "out"}}
    EmbedConfig.model_validate(sections)
    for compute, named in (({"backend": "openvino"}, "openvino: has no products in float8"), ({"dtype": "float32"}, "all is bfloat16")):
        with pytest.raises(ValueError, match=named):
            EmbedConfig.model_validate(sections | {"compute": compute})
    with pytest.raises(ValueError, match=r"embedding.float8: a calibration is fitted on the whole model"):
        CalibrateConfig.model_validate(sections)
