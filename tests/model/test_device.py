"""On a GPU (pytest -m gpu): what everything else here proves on a CPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedder.model.encoder import Encoder
from embedder.model.files.families import FAMILIES
from embedder.model.memory import LEAST_TOKENS, MOST_TOKENS
from tests.model.conftest import CONFIGS, TinyModel

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", CONFIGS)
def test_a_gpu_gives_the_vectors_of_a_cpu(family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = tiny_models(family)
    ids, spec = model.tokenize(texts), model.resolve().spec
    expected_ND = Encoder.load(spec, dtype="float32").encode(ids, 512).vectors_ND
    exact = Encoder.load(spec, "cuda", "float32").encode(ids, 512)
    assert (exact.vectors_ND * expected_ND).sum(axis=1).min() >= 0.9999
    half = Encoder.load(spec, "cuda", "bfloat16").encode(ids, 512)
    assert (half.vectors_ND * expected_ND).sum(axis=1).min() >= 0.99
    assert (half.padded_tokens == len(ids.flatten())) == FAMILIES[family].packed, "auto packs in half precision"


@pytest.mark.parametrize("family", CONFIGS)
def test_a_gpu_gives_the_vectors_of_float8_that_a_cpu_emulates(
    family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]
) -> None:
    """Near the exact ones, and nearer to the emulated: what both lose is the same, but for sums in another order."""
    model = tiny_models(family)
    ids = model.tokenize(texts)
    exact, emulated = (model.load(dtype, float8=dtype == "auto", depth=1).encode(ids, 512).vectors_ND for dtype in ("float32", "auto"))
    encoder = Encoder.load(model.resolve(float8=True, depth=1).spec, "cuda")
    found = encoder.encode(ids, 512)
    cosines = (found.vectors_ND * exact).sum(axis=1)
    assert cosines.min() >= 0.985
    assert (found.vectors_ND * emulated).sum(axis=1).mean() > cosines.mean()
    assert (found.padded_tokens == len(ids.flatten())) == FAMILIES[family].packed, "auto packs around float8 too"
    assert encoder.weight_bytes < Encoder.load(model.resolve(depth=1).spec, "cuda", "bfloat16").weight_bytes


def test_packed_asked_for_by_name_is_checked_and_kept(tiny_model: TinyModel, texts: list[str]) -> None:
    ids, spec = tiny_model.tokenize(texts), tiny_model.resolve().spec
    packed, padded = (Encoder.load(spec, "cuda", "bfloat16", layout=layout).encode(ids, 512).vectors_ND for layout in ("packed", "padded"))
    assert (packed * padded).sum(axis=1).min() >= 0.999
    assert np.isfinite(packed).all()


def test_a_budget_is_found_from_free_memory(tiny_model: TinyModel) -> None:
    encoder = Encoder.load(tiny_model.resolve().spec, "cuda", "bfloat16")
    assert LEAST_TOKENS <= encoder.find_token_budget(0.01) <= encoder.find_token_budget() <= MOST_TOKENS


@pytest.mark.parametrize("family", CONFIGS)
def test_compiled_layers_give_the_same(family: str, tiny_models: Callable[[str], TinyModel], texts: list[str]) -> None:
    model = tiny_models(family)
    ids, spec = model.tokenize(texts), model.resolve().spec
    plain, compiled = (Encoder.load(spec, "cuda", "bfloat16", backend=backend) for backend in ("torch", "compiled"))
    assert (plain.encode(ids, 512).vectors_ND * compiled.encode(ids, 512).vectors_ND).sum(axis=1).min() >= 0.999


def test_threads_share_a_device(tiny_model: TinyModel, texts: list[str]) -> None:
    encoder, ids = Encoder.load(tiny_model.resolve().spec, "cuda", "bfloat16"), tiny_model.tokenize(texts)
    expected_ND = encoder.encode(ids, 64).vectors_ND
    with ThreadPoolExecutor(2) as threads:
        for vectors_ND in threads.map(lambda _: encoder.encode(ids, 64).vectors_ND, range(20)):
            np.testing.assert_allclose(vectors_ND, expected_ND, atol=1e-5)
