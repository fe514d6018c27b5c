"""Rotation onto principal axes before truncation: the encoder equals the arithmetic, and queries are rotated alike."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder.core.errors import ConfigError, ModelError, StorageError
from embedder.core.fidelity import unit
from embedder.core.quantization import Ranges
from embedder.core.rotation import digest_array, fit_rotation, keep_rotation, read_rotation, rotation_uri
from embedder.core.storage import Location
from embedder.model.calibration import Calibration, RangeKey, fitted_for, load_calibration, write_calibration
from embedder.model.encoder import Encoder
from tests.core.test_spec import SPEC
from tests.model.conftest import TinyModel
from tests.model.test_exits import calibrate

WIDTH = 64


def make_rotation(seed: int = 0, width: int = WIDTH) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0].astype(np.float32)


def rotated(model: Any, seed: int = 0) -> Calibration:
    """Return a made-up calibration with a rotation, and ranges for rotated vectors of dim 32 at the exit of depth 2."""
    ranges = {RangeKey("calibrated", 2, 32, rotated=True): Ranges(-np.ones(32, np.float32), np.ones(32, np.float32))}
    return replace(calibrate(model), rotation_WW=make_rotation(seed), ranges=ranges)


@pytest.fixture
def artifact(tiny_model: TinyModel, tmp_path: Path) -> str:
    uri = str(tmp_path / "calibration")
    write_calibration(rotated(tiny_model), uri)
    return uri


def test_axes_are_orthogonal_and_ordered_by_variance() -> None:
    spread = np.linspace(3, 0.1, 12)
    vectors = np.random.default_rng(0).normal(size=(4000, 12)) * spread @ make_rotation(3, 12)
    rotation_WW = fit_rotation(np.cov(vectors.T))
    np.testing.assert_allclose(rotation_WW.T @ rotation_WW, np.eye(12), atol=1e-5)
    np.testing.assert_allclose((vectors @ rotation_WW).std(axis=0), spread, rtol=0.1)
    assert rotation_WW.dtype == np.float32


def test_the_sign_of_an_axis_is_fixed() -> None:
    axes = make_rotation(1, 8).astype(np.float64)
    signs = np.random.default_rng(1).choice([-1, 1], 8)
    fitted = [fit_rotation((turned * np.arange(8, 0, -1)) @ turned.T) for turned in (axes, axes * signs)]
    np.testing.assert_allclose(*fitted, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
@pytest.mark.parametrize("embedding", [{}, {"layer_norm": True}, {"normalize": False}], ids=str)
def test_full_vectors_are_rotated_and_then_truncated(
    family: str, embedding: dict[str, Any], tiny_models: Callable[[str], Any], texts: list[str], tmp_path: Path
) -> None:
    model = tiny_models(family)
    plain, ids = model.resolve(**embedding).spec, model.tokenize(texts)
    calibration = replace(calibrate(model), fitted_for=fitted_for(plain), maps={}, ranges={}, rotation_WW=make_rotation())
    write_calibration(calibration, str(tmp_path))
    resolved = model.resolve(dim=24, calibration=str(tmp_path), rotate=True, **embedding)
    assert resolved.spec.rotation == digest_array(make_rotation())
    assert resolved.rotation_WW is not None
    expected = (Encoder.load(plain, dtype="float32").encode(ids, 512).vectors_ND @ make_rotation())[:, :24]
    expected = unit(expected) if plain.normalize else expected
    encoder = Encoder.load(resolved.spec, dtype="float32", calibration=resolved.calibration)
    np.testing.assert_allclose(encoder.encode(ids, 512).vectors_ND, expected, atol=1e-5)


def test_mapped_vectors_are_rotated_too(tiny_model: TinyModel, artifact: str, texts: list[str]) -> None:
    ids = tiny_model.tokenize(texts)
    whole = tiny_model.resolve(depth=2, calibration=artifact).spec
    mapped = Encoder.load(whole, dtype="float32", calibration=load_calibration(artifact)).encode(ids, 512).vectors_ND
    spec = tiny_model.resolve(depth=2, dim=32, calibration=artifact, rotate=True).spec
    assert spec.exit == "calibrated"
    encoder = Encoder.load(spec, dtype="float32", calibration=load_calibration(artifact))
    assert len(encoder.layers) == 2
    np.testing.assert_allclose(encoder.encode(ids, 512).vectors_ND, unit((mapped @ make_rotation())[:, :32]), atol=1e-5)


def test_a_query_runs_the_full_model_and_is_rotated_without_the_artifact(tiny_model: TinyModel, artifact: str, texts: list[str]) -> None:
    spec = tiny_model.resolve(depth=2, dim=32, calibration=artifact, rotate=True).spec.for_queries()
    assert (spec.depth, spec.exit, spec.calibration, spec.rotation) == (4, "native", None, digest_array(make_rotation()))
    ids = tiny_model.tokenize(texts)
    full = tiny_model.load().encode(ids, 512).vectors_ND
    turned = Encoder.load(spec, dtype="float32", rotation_WW=make_rotation()).encode(ids, 512).vectors_ND
    np.testing.assert_allclose(turned, unit((full @ make_rotation())[:, :32]), atol=1e-5)


def test_rotation_keeps_the_similarities_of_full_vectors(tiny_model: TinyModel, artifact: str, texts: list[str]) -> None:
    spec, ids = tiny_model.resolve(calibration=artifact, rotate=True).spec, tiny_model.tokenize(texts)
    plain, turned = (
        Encoder.load(each, dtype="float32", calibration=load_calibration(artifact)).encode(ids, 512).vectors_ND
        for each in (tiny_model.resolve().spec, spec)
    )
    assert np.abs(plain - turned).max() > 0.1
    np.testing.assert_allclose(turned @ turned.T, plain @ plain.T, atol=1e-5)


def test_the_rotation_is_in_the_artifact_and_changes_the_space(tiny_model: TinyModel, artifact: str) -> None:
    read = load_calibration(artifact)
    assert read.rotation_WW is not None
    assert np.array_equal(read.rotation_WW, make_rotation())
    assert read.ranges.keys() == {RangeKey("calibrated", 2, 32, rotated=True)}
    assert len({each.fingerprint for each in (read, replace(read, rotation_WW=None), rotated(tiny_model, 1))}) == 3
    turned, plain = (tiny_model.resolve(depth=2, calibration=artifact, rotate=rotate).spec for rotate in (True, False))
    assert [each.split(":")[0] for each in plain.differences(turned)] == ["rotation"]


def test_int8_of_rotated_vectors_has_separate_ranges(tiny_model: TinyModel, artifact: str) -> None:
    embedding: dict[str, Any] = {"depth": 2, "dim": 32, "calibration": artifact, "quantization": "int8"}
    assert tiny_model.resolve(rotate=True, **embedding).ranges is not None
    with pytest.raises(ConfigError, match=r"embedding.dim=32: .*no ranges of int8 .*\(dims there: none\)"):
        tiny_model.resolve(**embedding)


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (
            {"depth": 2, "exit": "native"},
            "embedding.rotate=true: the axes are those of the full model's vectors, not of depth 2 with a native exit",
        ),
        ({"calibration": None}, "embedding.rotate=true: needs an artifact of jobs.calibrate; set embedding.calibration"),
    ],
)
def test_rotate_is_refused_if_it_cannot_apply(tiny_model: TinyModel, artifact: str, embedding: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_model.resolve(**{"calibration": artifact, "rotate": True} | embedding)


def test_an_artifact_without_a_rotation_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    write_calibration(calibrate(tiny_model), str(tmp_path))
    with pytest.raises(ConfigError, match=r"has no rotation; make it again with jobs\.calibrate"):
        tiny_model.resolve(depth=2, calibration=str(tmp_path), rotate=True)


def test_an_encoder_without_the_specs_rotation_does_not_load(tiny_model: TinyModel, artifact: str) -> None:
    spec = tiny_model.resolve(depth=2, calibration=artifact, rotate=True).spec
    for wrong in (None, make_rotation(1)):
        with pytest.raises(ModelError, match=f"not the rotation of the spec \\({spec.rotation}\\)"):
            Encoder.load(spec.for_queries(), rotation_WW=wrong)
    with pytest.raises(ModelError, match="not the rotation of the spec"):
        Encoder.load(tiny_model.resolve().spec, rotation_WW=make_rotation())


def test_a_table_keeps_its_rotation_on_every_storage(location: str) -> None:
    rotation_WW = make_rotation(0, 8)
    spec = SPEC.model_copy(update={"rotation": digest_array(rotation_WW)})
    assert read_rotation(SPEC, Location(location)) is None
    with pytest.raises(StorageError, match="not found, and queries need the rotation"):
        read_rotation(spec, Location(location))
    keep_rotation(rotation_WW, Location(location))
    keep_rotation(rotation_WW, Location(location))
    found = read_rotation(spec, Location(location))
    assert found is not None
    assert np.array_equal(found, rotation_WW)


def test_a_damaged_rotation_is_refused(tmp_path: Path) -> None:
    rotation_WW = make_rotation(0, 8)
    spec = SPEC.model_copy(update={"rotation": digest_array(rotation_WW)})
    keep_rotation(rotation_WW, Location(str(tmp_path)))
    file = Path(rotation_uri(str(spec.rotation), str(tmp_path)))
    data = file.read_bytes()
    for damaged, message in ((data[:50], "damaged"), (b"", "damaged"), (data[:-4] + b"\0\0\0\1", "not the rotation of the spec")):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match=message):
            read_rotation(spec, Location(str(tmp_path)))
