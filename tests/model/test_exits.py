"""Leaving at a shallow depth by a fitted map: the encoder does what the arithmetic says, on states that one pass tapped."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.core.quantization import Ranges
from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.calibration import (
    DESCRIPTION,
    TENSORS,
    Calibration,
    ExitMap,
    RangeKey,
    fitted_for,
    load_calibration,
    write_calibration,
)
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import read_recipe
from embedder.model.resolve import resolve_model
from tests.model.conftest import CONFIGS, TinyModel

LAYERS, DEPTHS = (0, 1, 2, 3), (2, 3)


def make_up_weighing(seed: int = 7, num_queries: int = 4) -> AttentionPooling:
    """Rarities and queries of a tiny model, of which every part moves a weight by about as much."""
    rng = np.random.default_rng(seed)
    queries_TQX = rng.normal(0, [64**-0.5] * 64 + [1, 1, 1], size=(5, num_queries, 67)).astype(np.float32)
    return AttentionPooling(rng.uniform(0, 5, 64).astype(np.float32), queries_TQX)


WEIGHING = make_up_weighing()


def calibrate(model: Any, seed: int = 0, weighing: AttentionPooling = WEIGHING) -> Calibration:
    """Make up a calibration of a tiny model: maps for depths 2 and 3, ranges for dims 32 and 64 at depth 2."""
    rng, width = np.random.default_rng(seed), read_recipe(model.folder).width
    maps = {
        depth: ExitMap(
            tuple(range(depth + 1)),
            rng.normal(size=((depth + 1) * weighing.num_poolings * 64, width)).astype(np.float32),
            rng.normal(size=width).astype(np.float32),
        )
        for depth in DEPTHS
    }
    ranges = {RangeKey("calibrated", 2, dim): Ranges(-np.ones(dim, np.float32), np.ones(dim, np.float32)) for dim in (32, 64)}
    return Calibration(fitted_for(model.resolve().spec), 4, weighing, maps, ranges, {"documents": 7})


@pytest.fixture
def artifact(tiny_model: TinyModel, tmp_path: Path) -> str:
    uri = str(tmp_path / "calibration")
    write_calibration(calibrate(tiny_model), uri)
    return uri


def test_the_texts_fitted_on_are_kept_with_an_artifact_and_change_no_space(tiny_model: TinyModel, tmp_path: Path) -> None:
    plain, seen = calibrate(tiny_model), np.array([3, 2**64 - 1], np.uint64)
    write_calibration(replace(plain, fitted_texts=seen), str(tmp_path / "a"))
    write_calibration(plain, str(tmp_path / "b"))
    found, older = (load_calibration(str(tmp_path / name)) for name in "ab")
    np.testing.assert_array_equal(found.fitted_texts, seen)
    assert (found.fingerprint, older.fitted_texts) == (plain.fingerprint, None)


@pytest.mark.parametrize(("family", "num_queries"), [*((family, 4) for family in CONFIGS), ("bert", 2)])
def test_an_encoder_that_leaves_early_applies_the_map_to_what_a_full_pass_tapped(
    family: str, num_queries: int, tiny_models: Callable[[str], Any], texts: list[str], tmp_path: Path
) -> None:
    model, weighing = tiny_models(family), make_up_weighing(num_queries=num_queries)
    calibration, ids = calibrate(model, weighing=weighing), model.tokenize(texts)
    write_calibration(calibration, str(tmp_path))
    spec = model.resolve(depth=2, dim=32, calibration=str(tmp_path)).spec
    assert (spec.exit, spec.query_depth, spec.calibration) == ("calibrated", 4, calibration.fingerprint)
    encoder = Encoder.load(spec, dtype="float32", calibration=calibration)
    assert len(encoder.layers) == 2
    tapped = model.load().tap_exits(ids, 512, LAYERS, DEPTHS, weighing)
    mapped = tapped.states_NF[:, : 3 * weighing.num_poolings * 64] @ calibration.maps[2].weight_FW + calibration.maps[2].bias_W
    expected = mapped[:, :32] / np.linalg.norm(mapped[:, :32], axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(ids, 512).vectors_ND, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_one_pass_gives_the_raw_exits_and_the_full_vectors_too(family: str, tiny_models: Callable[[str], Any], texts: list[str]) -> None:
    model = tiny_models(family)
    ids = model.tokenize(texts)
    tapped = model.load().tap_exits(ids, 512, LAYERS, DEPTHS, WEIGHING)
    for depth in DEPTHS:
        np.testing.assert_allclose(tapped.native[depth], model.load(depth=depth).encode(ids, 512).vectors_ND, atol=1e-5)
    np.testing.assert_allclose(tapped.full_NW, model.load().encode(ids, 512).vectors_ND, atol=1e-5)
    norms = np.linalg.norm(tapped.states_NF.reshape(len(texts), -1, 64), axis=2)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_threads_may_share_an_encoder_whatever_it_taps(tiny_model: TinyModel, texts: list[str], artifact: str) -> None:
    spec, ids = tiny_model.resolve(depth=2, calibration=artifact).spec, tiny_model.tokenize(texts[:12])
    leaving = Encoder.load(spec, dtype="float32", calibration=calibrate(tiny_model))
    whole = tiny_model.load()
    calls = [
        lambda: leaving.encode(ids, 32).vectors_ND,
        lambda: whole.tap_exits(ids, 32, LAYERS, DEPTHS, WEIGHING).states_NF,
        lambda: whole.tap(ids, 32, (1, 3))[3],
    ]
    expected = [call() for call in calls]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda number: calls[number % 3](), range(30)))
    for number, rows in enumerate(found):
        np.testing.assert_allclose(rows, expected[number % 3], atol=1e-5)


def test_an_artifact_comes_back_as_it_was_written(tiny_model: TinyModel, artifact: str) -> None:
    calibration, read = calibrate(tiny_model), load_calibration(artifact)
    assert read.fingerprint == calibration.fingerprint
    assert read.maps.keys() == calibration.maps.keys()
    assert np.array_equal(read.maps[3].weight_FW, calibration.maps[3].weight_FW)
    assert np.array_equal(read.attention_pooling.token_weights_V, WEIGHING.token_weights_V)
    assert np.array_equal(read.attention_pooling.queries_TQX, WEIGHING.queries_TQX)
    assert read.ranges.keys() == calibration.ranges.keys()
    assert read.record == {"documents": 7}


def test_writing_the_same_again_is_nothing_and_another_is_refused(tiny_model: TinyModel, artifact: str) -> None:
    write_calibration(calibrate(tiny_model), artifact)
    with pytest.raises(ConfigError, match="holds another calibration, which tables may use; choose another folder"):
        write_calibration(calibrate(tiny_model, seed=1), artifact)


def test_the_space_changes_with_the_artifact(tiny_model: TinyModel, artifact: str, tmp_path: Path) -> None:
    write_calibration(calibrate(tiny_model, seed=1), str(tmp_path / "other"))
    specs = [tiny_model.resolve(depth=2, calibration=uri).spec for uri in (artifact, str(tmp_path / "other"))]
    specs.append(tiny_model.resolve(depth=2).spec)
    assert len({spec.space_id for spec in specs}) == 3
    assert any(difference.startswith("calibration: ") for difference in specs[0].differences(specs[1]))


def test_token_weights_and_queries_are_part_of_the_space(tiny_model: TinyModel) -> None:
    calibration = calibrate(tiny_model)
    heavier = replace(calibration, attention_pooling=replace(WEIGHING, token_weights_V=WEIGHING.token_weights_V * 2))
    sharper = replace(calibration, attention_pooling=replace(WEIGHING, queries_TQX=WEIGHING.queries_TQX * 2))
    assert len({each.fingerprint for each in (calibration, heavier, sharper)}) == 3


def test_an_artifact_with_trained_layers_is_refused_by_name(artifact: str) -> None:
    tensors = Path(artifact, TENSORS)
    tensors.write_bytes(save(load(tensors.read_bytes()) | {"layers.2.encoder.layer.1.output.dense.bias": np.zeros(64, np.float32)}))
    with pytest.raises(ConfigError, match=r"holds layers trained by calibrate\.method=distill.*; make it again with jobs\.calibrate"):
        load_calibration(artifact)


def test_an_artifact_of_an_earlier_format_is_refused_by_name(artifact: str) -> None:
    description = Path(artifact, DESCRIPTION)
    description.write_text(description.read_text().replace('"format": 5', '"format": 4'))
    with pytest.raises(ConfigError, match="format 4, expected 5; make it again"):
        load_calibration(artifact)


def test_a_query_runs_the_full_model_without_the_map(tiny_model: TinyModel, artifact: str) -> None:
    spec = tiny_model.resolve(depth=2, calibration=artifact, quantization="int8").spec.for_queries()
    assert (spec.depth, spec.exit, spec.calibration, spec.quantization) == (4, "native", None, "none")


def test_a_damaged_artifact_is_refused(artifact: str) -> None:
    tensors = Path(artifact, TENSORS)
    tensors.write_bytes(tensors.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ConfigError, match="its contents do not match its fingerprint"):
        load_calibration(artifact)
    for damaged in (save({"tokens": WEIGHING.token_weights_V}), b"short"):
        tensors.write_bytes(damaged)
        with pytest.raises(ConfigError, match="damaged"):
            load_calibration(artifact)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda _: "{", "damaged \\(JSONDecodeError"),
        (lambda _: "[]", "damaged \\(TypeError"),
        (lambda written: json.dumps({key: value for key, value in written.items() if key != "fingerprint"}), "KeyError: 'fingerprint'"),
        (lambda written: json.dumps(written | {"fitted_for": {"model": "x"}}), "damaged \\(KeyError"),
        (lambda written: json.dumps(written | {"maps": 3}), "damaged \\(AttributeError"),
        (lambda written: json.dumps(written | {"ranges": ["calibrated"]}), "damaged \\(ValueError"),
        (lambda written: json.dumps(written | {"full_depth": 2}), "its contents do not match its fingerprint"),
    ],
)
def test_a_damaged_description_is_refused_before_the_run(
    damage: Callable[[dict[str, Any]], str], named: str, tiny_model: TinyModel, artifact: str
) -> None:
    description = Path(artifact, DESCRIPTION)
    description.write_text(damage(json.loads(description.read_text())))
    with pytest.raises(ConfigError, match=rf"embedding\.calibration=.*{named}"):
        tiny_model.resolve(depth=2, calibration=artifact)


def test_a_folder_without_an_artifact_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no {DESCRIPTION} there; make one with jobs.calibrate"):
        tiny_model.resolve(depth=2, calibration=str(tmp_path))


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ({"depth": 1}, "embedding.depth=1: .* has maps for depths 2, 3; choose one of these, or --embedding.exit native"),
        ({"depth": 2, "pooling": "last"}, "was fitted for another model or recipe \\(pooling: 'cls' → 'last'\\)"),
        ({"depth": 2, "dim": 16, "quantization": "int8"}, "embedding.dim=16: .*no ranges of int8 .*\\(dims there: 32, 64\\)"),
        ({"depth": 2, "exit": "native"}, "has no effect at depth 2 with a native exit, without int8 and rotate; leave it out"),
        ({"depth": 2, "dim": 12, "quantization": "binary"}, "embedding.dim=12: binary packs eight components into a byte"),
    ],
)
def test_what_the_artifact_cannot_do_is_refused(tiny_model: TinyModel, artifact: str, embedding: dict[str, Any], message: str) -> None:
    exit_name = {} if embedding["depth"] != 1 else {"exit": "calibrated"}
    with pytest.raises(ConfigError, match=message):
        tiny_model.resolve(calibration=artifact, **embedding, **exit_name)


def test_another_model_and_other_lengths_are_refused_by_name(
    tiny_model: TinyModel, tiny_models: Callable[[str], TinyModel], artifact: str
) -> None:
    with pytest.raises(ConfigError, match=r"another model or recipe \(model: .*"):
        tiny_models("roberta").resolve(depth=2, calibration=artifact)
    with pytest.raises(ConfigError, match=r"max_tokens: 128 → 64"):
        tiny_model.resolve(max_tokens=64, depth=2, calibration=artifact)


def test_an_artifact_belongs_to_its_template_and_to_any_boundaries(tiny_model: TinyModel, artifact: str, tmp_path: Path) -> None:
    def resolve(uri: str | None, **chunking: Any) -> EmbeddingSpec:
        return resolve_model(EmbeddingConfig(model=str(tiny_model.folder), depth=2, calibration=uri), ChunkingConfig(**chunking)).spec

    template = "{title}: {chunk}"
    with pytest.raises(ConfigError, match=r"another model or recipe \(template: None → '{title}: {chunk}'; context_tokens: None → 42\)"):
        resolve(artifact, template=template)
    assert resolve(artifact, boundaries=("sentence", "word"), min_tokens=9, overlap_tokens=9).exit == "calibrated"
    titled = str(tmp_path / "titled")
    whole = resolve_model(EmbeddingConfig(model=str(tiny_model.folder)), ChunkingConfig(template=template)).spec
    write_calibration(replace(calibrate(tiny_model), fitted_for=fitted_for(whole)), titled)
    assert resolve(titled, template=template).calibration != calibrate(tiny_model).fingerprint
    for chunking, named in (({}, "template: "), ({"template": template, "context_tokens": 9}, "context_tokens: 42 → 9")):
        with pytest.raises(ConfigError, match=named):
            resolve(titled, **chunking)


def test_an_artifact_older_than_templates_keeps_its_fingerprint(tiny_model: TinyModel, artifact: str) -> None:
    description = json.loads(Path(artifact, DESCRIPTION).read_text())
    for name in ("template", "context_tokens"):
        del description["fitted_for"][name]
    Path(artifact, DESCRIPTION).write_text(json.dumps(description))
    assert load_calibration(artifact).fingerprint == calibrate(tiny_model).fingerprint
    assert tiny_model.resolve(depth=2, calibration=artifact).spec.exit == "calibrated"


@pytest.mark.parametrize(
    ("embedding", "named"), [({"quantization": "int8"}, "quantization=int8"), ({"exit": "calibrated", "depth": 2}, "exit=calibrated")]
)
def test_what_needs_an_artifact_says_so(tiny_model: TinyModel, embedding: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"embedding.{named}: needs an artifact of jobs.calibrate; set embedding.calibration"):
        tiny_model.resolve(**embedding)


def test_a_worker_with_another_artifact_refuses_to_start(tiny_model: TinyModel, artifact: str) -> None:
    spec = tiny_model.resolve(depth=2, calibration=artifact).spec
    for wrong in (None, calibrate(tiny_model, seed=1)):
        with pytest.raises(ModelError, match="not the artifact of the spec"):
            Encoder.load(spec, calibration=wrong)
