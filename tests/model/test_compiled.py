"""Layers compiled by torch give what they give as they are, for every family and in both layouts, without being compiled ever again."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from embedder.config.compute import Layout
from embedder.core.errors import ConfigError, ModelError
from embedder.model import compiling
from embedder.model.encoder import Encoder
from embedder.model.files.families import FAMILIES
from embedder.model.loading import resolve_backend
from tests.model.conftest import DISTINCT, TinyModel
from tests.model.test_exits import calibrate

pytestmark = [
    pytest.mark.real,  # a compiler, seconds a model
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # torch's compiler is the one that uses it
]


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Each test compiles for itself."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def load(model: TinyModel, layout: Layout = "packed", **embedding: Any) -> Encoder:
    return Encoder.load(model.resolve(**embedding).spec, dtype="float32", layout=layout, backend="compiled")


IN_CI = ("bert", "modernbert", "qwen3")
"""A shape of layers each; compiling one takes 5 to 25 s on two cores."""


@pytest.mark.parametrize("family", [each if each in IN_CI else pytest.param(each, marks=pytest.mark.slow) for each in DISTINCT])
def test_every_family_gives_the_same_compiled(family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = tiny_models(family)
    ids = model.tokenize(texts)
    layout: Layout = "packed" if FAMILIES[family].packed else "padded"
    np.testing.assert_allclose(load(model, layout).encode(ids, 512).vectors_ND, model.load().encode(ids, 512).vectors_ND, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0


def test_padded_batches_give_the_same_too(tiny_model: TinyModel, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    expected_ND = tiny_model.load().encode(ids, 64).vectors_ND
    np.testing.assert_allclose(load(tiny_model, "padded").encode(ids, 64).vectors_ND, expected_ND, atol=1e-5)


def test_batches_of_any_shape_run_what_was_compiled_when_the_model_was_loaded(tiny_model: TinyModel, texts: list[str]) -> None:
    encoder, ids = load(tiny_model), tiny_model.tokenize(texts)
    compiled = counters["stats"]["unique_graphs"]
    assert 0 < compiled <= 2, "once for all layers, and at most once more for lengths that differ"
    for token_budget in (16, 33, 64, 128, 200, 512):
        for first in range(0, len(ids) - 2, 3):
            encoder.encode(ids[first:], token_budget)
    assert counters["stats"]["unique_graphs"] <= 2
    assert not counters["graph_break"]


@pytest.mark.slow
def test_the_last_of_many_models_in_a_process_is_compiled_like_the_first(tiny_models: Callable[[str], TinyModel]) -> None:
    graphs = [0]
    for family in ("bert", "modernbert", "qwen3", "bert", "modernbert"):
        load(tiny_models(family), "padded")
        graphs.append(counters["stats"]["unique_graphs"])
    of_bert, of_modernbert, of_qwen3, *again = np.diff(graphs)
    assert min(of_bert, of_modernbert, of_qwen3) > 0
    assert again == [of_bert, of_modernbert]


def test_a_layer_that_would_run_uncompiled_is_an_error(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MOST_GRAPHS", 1)
    encoder = tiny_model.load().compile_layers()
    one, more = (pa.array([[1] * length] * length, pa.list_(pa.int32())) for length in (1, 9))
    encoder.encode(one, 512)
    with pytest.raises(FailOnRecompileLimitHit):
        encoder.encode(more, 512)


def test_a_calibrated_exit_taps_compiled_layers(tiny_model: TinyModel, texts: list[str], tmp_path: Path) -> None:
    calibration, ids = calibrate(tiny_model), tiny_model.tokenize(texts)
    leaving = {"exit": "calibrated", "calibration": calibration.fingerprint, "depth": 2}
    spec = tiny_model.resolve().spec.model_copy(update=leaving)
    plain, compiled = (
        Encoder.load(spec, dtype="float32", calibration=calibration, layout="packed", backend=backend) for backend in ("torch", "compiled")
    )
    np.testing.assert_allclose(compiled.encode(ids, 128).vectors_ND, plain.encode(ids, 128).vectors_ND, atol=1e-5)


def test_layers_in_float8_are_compiled_as_they_are(tiny_model: TinyModel, texts: list[str]) -> None:
    spec, ids = tiny_model.resolve(float8=True).spec, tiny_model.tokenize(texts)
    plain, compiled = (Encoder.load(spec, layout="packed", backend=backend) for backend in ("torch", "compiled"))
    cosines = (plain.encode(ids, 128).vectors_ND * compiled.encode(ids, 128).vectors_ND).sum(axis=1)
    assert cosines.min() >= 0.98


def test_auto_does_not_compile() -> None:
    assert resolve_backend("auto", "cuda", torch.bfloat16, "packed") == "torch"
    assert resolve_backend("compiled", "cuda", torch.bfloat16, "packed") == "compiled"


def test_layers_that_come_out_wrong_are_refused(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_wrongly(forward: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        return lambda layer, states, *rest, **named: forward(layer, states.roll(1, -1), *rest, **named)

    monkeypatch.setattr(torch, "compile", compile_wrongly)
    with pytest.raises(ModelError, match=r"compute\.backend=compiled: a probe's vector .* to torch's \(0\.999\); choose auto"):
        load(tiny_model)


def test_torch_2_11_counts_the_graphs_of_all_models_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def compile_of_2_11(model: Any = None, *, fullgraph: bool = False, dynamic: bool | None = None) -> Any:
        asked.update(fullgraph=fullgraph, dynamic=dynamic)
        return model

    monkeypatch.setattr(torch, "compile", compile_of_2_11)
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=8):
        assert compiling.compile_forward(abs) is abs
        assert asked == {"fullgraph": True, "dynamic": True}
        assert torch._dynamo.config.recompile_limit == torch._dynamo.config.accumulated_recompile_limit >= 16 * compiling.MOST_GRAPHS


def test_a_gpu_without_a_c_compiler_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"compute\.backend=compiled: no C compiler .* install gcc and libc6-dev"):
        resolve_backend("compiled", "cuda", torch.bfloat16, "packed")
    with pytest.raises(ConfigError, match=r"no C compiler"):
        resolve_backend("compiled", "cuda", torch.bfloat16, "packed", float8=True)
    assert resolve_backend("torch", "cuda", torch.bfloat16, "packed") == "torch"
    assert resolve_backend("compiled", "cpu", torch.float32, "packed") == "compiled"
    monkeypatch.setenv("CC", sys.executable)
    assert resolve_backend("compiled", "cuda", torch.bfloat16, "packed") == "compiled"


def test_a_machine_without_a_compiler_is_told_so(minilm: str, tmp_path: Path) -> None:
    code = (
        "from embedder.config.embedding import ChunkingConfig, EmbeddingConfig\n"
        "from embedder.model.resolve import resolve_model; from embedder.model.encoder import Encoder\n"
        "from embedder.core.errors import ModelError\n"
        f"spec = resolve_model(EmbeddingConfig(model={minilm!r}, depth=1), ChunkingConfig()).spec\n"
        "try: Encoder.load(spec, dtype='float32', backend='compiled')\n"
        "except ModelError as error: print(error)"
    )
    environment = os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert told.startswith("compute.backend=compiled: ")
    assert "No working C++ compiler" in told
