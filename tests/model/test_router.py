"""A Router embeds documents by one route and queries by another, as encode_document and encode_query of sentence-transformers do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from torch import nn

from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import read_recipe
from embedder.model.model_report import describe_model
from embedder.search.code_snippet import write_snippet
from embedder.search.query_encoder import QueryEncoder
from tests.model.conftest import TinyModel, build_tokenizer, save_transformer, tokenize
from tests.model.test_encoder import cosines, seeded
from tests.model.test_exits import calibrate, write_calibration

PROMPTS = {"document": "the cat ", "query": "dogs ran "}
Routes = dict[str, list[nn.Module]]


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Transformer]:
    folder = tmp_path_factory.mktemp("routes")
    for family in ("bert", "qwen3"):
        save_transformer(folder / family, family)
    return lambda family, **settings: Transformer(str(folder / family), **settings)


@pytest.fixture(scope="module")
def texts(texts: list[str]) -> list[str]:
    """Six texts; the longest exceeds the limit of tokens."""
    return [*texts[:5], max(texts, key=len)]


def save(folder: Path, *modules: nn.Module) -> TinyModel:
    SentenceTransformer(modules=list(modules), prompts=PROMPTS, device="cpu").save(str(folder), create_model_card=False)
    return TinyModel(folder, "bert")


def build_static() -> StaticEmbedding:
    tokenizer = build_tokenizer("bert")
    torch.manual_seed(2)
    return StaticEmbedding(tokenizer, embedding_weights=torch.randn(len(tokenizer), 64))


def build_routes(kind: str, make: Callable[..., Transformer]) -> list[nn.Module]:
    """Return the modules of a model of this kind."""
    if kind == "heads":
        return [make("bert"), Pooling(64), Router({"query": [seeded(Dense(64, 48))], "doc": [Dense(64, 48)]}), Normalize()]
    documents = [make("bert"), Pooling(64, ("cls", "mean")), Dense(128, 64)]
    queries: list[nn.Module] = [build_static()]
    if kind == "transformers":
        queries = [make("qwen3", max_seq_length=20), Pooling(64, "lasttoken")]
    if kind == "shared":
        queries = [documents[0], Pooling(64, "cls")]
    routes = Router.for_query_document(query_modules=queries, document_modules=documents)
    return [Router({"text": [routes]}) if kind == "shared" else routes, Normalize()]


@pytest.mark.parametrize("kind", ["static", "transformers", "shared", "heads"])
def test_both_sides_equal_sentence_transformers(
    kind: str, transformer: Callable[..., Transformer], tmp_path: Path, texts: list[str]
) -> None:
    model = save(tmp_path / "model", *build_routes(kind, transformer))
    resolved, theirs = model.resolve(), model.reference()
    task = "doc" if kind == "heads" else "document"
    passages = theirs.encode(texts, task=task, prompt="the cat ", normalize_embeddings=True)
    ids = tokenize(resolved, texts)
    for layout in ("padded", "packed"):
        vectors = Encoder.load(resolved.spec, dtype="float32", layout=layout).encode(ids, 512).vectors_ND
        assert cosines(vectors, passages).min() >= 0.99999
    encoder = QueryEncoder(resolved.spec)
    queries = theirs.encode_query(texts, normalize_embeddings=True)
    assert cosines(encoder.encode(texts), queries).min() >= 0.99999
    assert cosines(encoder.encode_passages(texts), passages).min() >= 0.99999
    assert cosines(queries, passages).max() < 0.99
    assert resolved.spec.for_queries().space_id != resolved.spec.for_passages().space_id
    found: dict[str, Any] = {"queries": texts}
    exec(write_snippet(resolved.spec, Location("table")), found)
    assert cosines(found["vectors"], queries).min() >= 0.99999


@pytest.mark.parametrize(
    ("mappings", "routes"),
    [
        ({("query", "text"): "b", (None, None): "a"}, ("b", "a")),
        ({("document", None): "b", (None, "text"): "a"}, ("a", "b")),
        ({(None, "text"): "b"}, ("b", "b")),
        ({("query", "image"): "a"}, ("query", "document")),
    ],
)
def test_mappings_choose_the_route_that_sentence_transformers_chooses(
    mappings: dict[Any, str], routes: tuple[str, str], tmp_path: Path, transformer: Callable[..., Transformer]
) -> None:
    heads = {name: [seeded(Dense(64, 48 if name in "ab" else 40))] for name in ("a", "b", "query", "document")}
    router = Router(heads, route_mappings=mappings)
    folder = save(tmp_path / "model", transformer("bert"), Pooling(64), router).folder
    assert routes == tuple(router._resolve_route(task, "text") for task in ("query", "document"))
    layouts = (read_recipe(folder, route="query"), read_recipe(folder))
    assert tuple(each.steps[0].folder.name for each in layouts) == tuple(f"{name}_0_Dense" for name in routes)


@pytest.fixture
def routed(tmp_path: Path, transformer: Callable[..., Transformer]) -> TinyModel:
    return save(tmp_path / "model", *build_routes("static", transformer))


def test_the_config_of_earlier_versions_is_read(routed: TinyModel, tmp_path: Path, transformer: Callable[..., Transformer]) -> None:
    model = save(tmp_path / "heads", *build_routes("heads", transformer))
    before = QueryEncoder(model.resolve().spec).encode(["the cat"])
    router = model.folder / "2_Router"
    (router / "router_config.json").rename(router / "config.json")
    modules = json.loads((model.folder / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Asym"
    (model.folder / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_array_equal(QueryEncoder(model.resolve().spec).encode(["the cat"]), before)


def test_the_checksum_covers_both_routes_and_the_router(routed: TinyModel) -> None:
    seen = {read_recipe(routed.folder).checksum, read_recipe(routed.folder, route="query").checksum}
    assert len(seen) == 1
    for name in ("document_2_Dense/model.safetensors", "query_0_StaticEmbedding/model.safetensors"):
        path = routed.folder / name
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
        seen.add(read_recipe(routed.folder).checksum)
    path = routed.folder / "router_config.json"
    path.write_text(path.read_text() + " ")
    assert len(seen | {read_recipe(routed.folder).checksum}) == 4


def test_queries_of_a_calibrated_exit_run_all_layers_of_their_route(
    tmp_path: Path, transformer: Callable[..., Transformer], texts: list[str]
) -> None:
    documents = [transformer("bert"), Pooling(64)]
    routes = Router.for_query_document(query_modules=[build_static()], document_modules=documents)
    model = save(tmp_path / "model", routes, Normalize())
    write_calibration(calibrate(model), str(tmp_path / "calibration"))
    spec = model.resolve(depth=2, calibration=str(tmp_path / "calibration")).spec
    assert (spec.depth, spec.for_queries().depth, spec.for_passages().depth) == (2, 1, 4)
    encoder, theirs = QueryEncoder(spec), model.reference()
    assert cosines(encoder.encode(texts[:4]), theirs.encode_query(texts[:4])).min() >= 0.99999
    assert cosines(encoder.encode_passages(texts[:4]), theirs.encode_document(texts[:4])).min() >= 0.99999


def test_a_depth_cuts_both_routes_of_equal_layers(tmp_path: Path, transformer: Callable[..., Transformer], texts: list[str]) -> None:
    model = save(tmp_path / "model", *build_routes("transformers", transformer))
    spec = model.resolve(depth=2).spec
    assert (spec.for_queries().depth, spec.for_queries().final_norm, spec.for_queries().max_tokens) == (2, "apply", 20)
    theirs = model.reference()
    decoder = theirs[0].sub_modules["query"][0].auto_model
    decoder.layers = decoder.layers[:2]
    assert cosines(QueryEncoder(spec).encode(texts), theirs.encode_query(texts)).min() >= 0.99999


def test_what_the_routes_do_not_share_is_refused(routed: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedding\.depth=2: .* has 4 layers for documents and 1 for queries; leave it out"):
        routed.resolve(depth=2)
    with pytest.raises(ConfigError, match=r"embedding\.layer_norm=True: the routes of .* have their own; leave it out"):
        routed.resolve(layer_norm=True)
    for name, change, named in (
        ("config", {"structure": {"query": [], "image": []}}, r"router_config\.json: no route for 'document' \(found: query, image\)"),
        ("broken", {"structure": {"document": ["x"]}}, r"router_config\.json: cannot be used \(KeyError: 'x'\)"),
        ("sparse", {"structure": {"document": ["document_1_Pooling"], "query": []}}, "modules.json: Pooling → Normalize is not supported"),
    ):
        path = Path(shutil.copytree(routed.folder, tmp_path / name)) / "router_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ConfigError, match=named):
            TinyModel(path.parent, "bert").resolve()


def test_routes_of_different_widths_are_refused(tmp_path: Path, transformer: Callable[..., Transformer]) -> None:
    documents = [transformer("bert"), Pooling(64), Dense(64, 32)]
    routes = Router.for_query_document(query_modules=[build_static()], document_modules=documents)
    model = save(tmp_path / "model", routes)
    with pytest.raises(ConfigError, match=r"router_config\.json: vectors of queries have 64 components, those of documents 32"):
        model.resolve()
    assert "those of documents 32" in describe_model(str(model.folder), None)["refused"]


def test_the_report_shows_the_route_for_queries(routed: TinyModel, tiny_model: TinyModel) -> None:
    report = describe_model(str(routed.folder), None)
    assert (report["family"], report["query_route"]) == ("bert", "static_embedding, 1 layers of 64, pooling mean")
    assert describe_model(str(tiny_model.folder), None)["query_route"] is None
