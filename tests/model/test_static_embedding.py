"""A table of token vectors equals sentence-transformers' StaticEmbedding, in its own layout and in model2vec's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

import embedder.model.files.recipe as recipe_files
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import read_recipe
from embedder.model.model_report import describe_model
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.search.code_snippet import write_snippet
from embedder.search.query_encoder import QueryEncoder
from tests.model.conftest import build_tokenizer, tokenize


def resolve(folder: Path, **embedding: Any) -> ResolvedModel:
    return resolve_model(EmbeddingConfig(model=str(folder), **embedding), ChunkingConfig())


def to_older_layout(folder: Path) -> None:
    """Move the module into a folder of its own."""
    (folder / "0_StaticEmbedding").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).rename(folder / "0_StaticEmbedding" / name)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0] | {"path": "0_StaticEmbedding"}, *modules[1:]]))


def to_model2vec(folder: Path, *names: str) -> None:
    """Rewrite the saved table with model2vec's names."""
    table = load_file(folder / "model.safetensors")["embedding.weight"]
    draw = torch.Generator().manual_seed(1)
    weights = {
        "embeddings": table[:20].clone() if "mapping" in names else table,
        "mapping": torch.randint(0, 20, (len(table),), generator=draw),
        "weights": torch.rand(len(table), generator=draw, dtype=torch.float64),
    }
    save_file({name: weights[name] for name in ("embeddings", *names)}, folder / "model.safetensors")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0] |= {"path": ".", "type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": 64}))


@pytest.fixture
def static(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer("bert")
    module = StaticEmbedding(tokenizer, embedding_weights=torch.randn(len(tokenizer), 64))
    SentenceTransformer(modules=[module, Normalize()], device="cpu").save(str(tmp_path / "model"), create_model_card=False)
    return tmp_path / "model"


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda _: None,
        to_older_layout,
        to_model2vec,
        lambda folder: to_model2vec(folder, "weights"),
        lambda folder: to_model2vec(folder, "mapping", "weights"),
    ],
)
def test_vectors_equal_sentence_transformers(static: Path, rewrite: Callable[[Path], None], texts: list[str]) -> None:
    rewrite(static)
    resolved = resolve(static, prompt="the cat ", dim=48)
    theirs = SentenceTransformer(str(static), device="cpu", truncate_dim=48)
    expected = theirs.encode(texts, prompt="the cat ", normalize_embeddings=True)
    ids = tokenize(resolved, texts)
    for layout in ("padded", "packed"):
        encoded = Encoder.load(resolved.spec, dtype="float32", layout=layout).encode(ids, 512).vectors_ND
        np.testing.assert_allclose(encoded, expected, atol=2e-6)


def test_openvino_and_taps_give_the_same(static: Path, texts: list[str]) -> None:
    resolved = resolve(static)
    ids, encoder = tokenize(resolved, texts), Encoder.load(resolved.spec, dtype="float32")
    expected = encoder.encode(ids, 512).vectors_ND
    converted = Encoder.load(resolved.spec, dtype="float32", backend="openvino").encode(ids, 512).vectors_ND
    np.testing.assert_allclose(converted, expected, atol=1e-5)
    for states in encoder.tap(ids, 512, [0, 1]).values():
        np.testing.assert_allclose(states / np.linalg.norm(states, axis=1, keepdims=True), expected, atol=1e-6)


def test_a_prompt_and_text_get_no_special_tokens(static: Path) -> None:
    assert tokenize(resolve(static), ["cat cat"]).to_pylist()[0] == [5, 5]
    vectors = QueryEncoder(resolve(static, query_prompt="the ").spec).encode(["cat"])
    table = load_file(static / "model.safetensors")["embedding.weight"]
    expected = (table[4] + table[5]).numpy()
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_depth_has_no_meaning_and_length_no_limit(static: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedding\.depth=1: .* is a table of token vectors, without layers; leave it out"):
        resolve(static, depth=1)
    long = resolve_model(EmbeddingConfig(model=str(static)), ChunkingConfig(max_tokens=100_000))
    assert (read_recipe(static).max_tokens, long.spec.max_tokens) == (512, 100_000)
    (row,) = tokenize(long, ["the cat " * 20_000]).to_pylist()
    vectors = Encoder.load(long.spec, dtype="float32").encode(pa.array([row], pa.list_(pa.int32())), 512).vectors_ND
    theirs = SentenceTransformer(str(static), device="cpu").encode(["the cat " * 20_000])
    assert float(vectors[0] @ theirs[0]) >= 0.99999


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"codes": torch.zeros(3)}, "holds codes, embedding.weight; a static embedding has"),
        ({"embedding.weight": torch.zeros(10, 64)}, "embeddings for ids 0 to 9"),
    ],
)
def test_other_tables_are_refused(static: Path, change: dict[str, torch.Tensor], named: str) -> None:
    path = static / "model.safetensors"
    save_file(load_file(path) | change, path)
    with pytest.raises(ConfigError, match=named):
        resolve(static)


def test_every_byte_of_the_table_is_in_the_checksum_and_the_report_names_it(static: Path) -> None:
    before = read_recipe(static).checksum
    path = static / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert read_recipe(static).checksum != before
    report = describe_model(str(static), None)
    assert (report["runs"], report["family"], report["components"]) == (True, "static_embedding", 64)


def test_a_transformer_beside_a_table_is_refused(static: Path, tiny_models: Callable[[str], Any]) -> None:
    modules = json.loads((static / "modules.json").read_text())
    (static / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Transformer", "path": "1_T"}]))
    with pytest.raises(ConfigError, match="start with one Transformer and one Pooling, or with a StaticEmbedding"):
        resolve(static)


def test_a_hub_model_is_measured_by_its_table_even_where_no_weights_are_asked_for(static: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, asked = static.rename(static.with_name("stored")), []

    def download(_name: str, allow_patterns: list[str], ignore_patterns: list[str] | None = None, **_: Any) -> str:
        asked.append(allow_patterns)
        is_ignored = shutil.ignore_patterns(*(ignore_patterns or []))
        return str(shutil.copytree(stored, static, ignore=is_ignored, dirs_exist_ok=True))

    monkeypatch.setattr(recipe_files, "snapshot_download", download)
    report = describe_model("acme/static", None)
    assert (report["runs"], report["components"]) == (True, 64)
    assert asked[1] == ["pytorch_model*.bin", "model.safetensors"]


def test_the_snippet_makes_the_same_vectors_with_sentence_transformers(static: Path) -> None:
    spec = resolve_model(EmbeddingConfig(model=str(static), dim=32), ChunkingConfig(max_tokens=100)).spec
    found: dict[str, Any] = {"queries": ["the cat", "stars"]}
    exec(write_snippet(spec, Location("table")), found)
    np.testing.assert_allclose(found["vectors"], QueryEncoder(spec).encode(["the cat", "stars"]), atol=2e-6)
