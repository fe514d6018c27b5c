"""Defaults that a model's files do not make are known by its name, or guessed and named."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.model.defaults import choose_defaults
from embedder.model.files.known_models import KNOWN_MODELS
from embedder.model.files.recipe import read_recipe
from embedder.model.files.st_layout import Prompts
from embedder.model.resolve import resolve_model
from tests.model.files.test_recipe import edit


def guesses(model: str, recipe: Any, **settings: Any) -> tuple[str, ...]:
    return choose_defaults(model, recipe).list_guesses(EmbeddingConfig(model=model, **settings))


def test_a_card_prompt_is_the_default_of_its_model_and_is_named(tiny_model: Any) -> None:
    recipe = read_recipe(tiny_model.folder)
    defaults = choose_defaults("intfloat/Multilingual-E5-base", recipe)
    assert (defaults.prompt, defaults.query_prompt) == ("passage: ", "query: ")
    reason = "known for this model, its files do not hold it"
    assert guesses("intfloat/multilingual-e5-base", recipe) == (
        f"embedding.prompt='passage: ': {reason}",
        f"embedding.query_prompt='query: ': {reason}",
    )
    assert guesses("intfloat/multilingual-e5-base", recipe, prompt="", query_prompt="") == ()
    (instruction,) = guesses("intfloat/multilingual-e5-large-instruct", recipe)
    assert instruction.startswith("embedding.query_prompt='Instruct: Given a web search query, ")


def test_prompts_in_the_files_come_before_those_of_the_card(tiny_model: Any) -> None:
    recipe = dataclasses.replace(read_recipe(tiny_model.folder), prompts=Prompts("", "q: ", ("query",)))
    defaults = choose_defaults("BAAI/bge-base-en-v1.5", recipe)
    assert (defaults.prompt, defaults.query_prompt, defaults.reasons) == ("", "q: ", {})


def test_prompts_of_other_names_are_named(tiny_model: Any) -> None:
    recipe = dataclasses.replace(read_recipe(tiny_model.folder), prompts=Prompts("", "", ("s2p_query", "s2s_query")))
    first, second = guesses("acme/stella", recipe)
    assert first.startswith("embedding.prompt='': the model's files name s2p_query, s2s_query, neither for documents nor for queries")
    assert second.startswith("embedding.query_prompt=''")


def test_the_guesses_of_a_bare_folder_are_named(tiny_model: Any) -> None:
    bare = str(tiny_model.folder.parent / "plain")
    resolved = resolve_model(EmbeddingConfig(model=bare), ChunkingConfig())
    assert [line.partition(":")[0] for line in resolved.guesses] == [
        "embedding.pooling='mean'",
        "embedding.prompt=''",
        "embedding.query_prompt=''",
    ]
    assert all("set it to be sure" in line for line in resolved.guesses)
    assert not resolve_model(EmbeddingConfig(model=bare, pooling="cls", prompt="", query_prompt=""), ChunkingConfig()).guesses
    assert not tiny_model.resolve().guesses, "its files say it"
    known = choose_defaults("cambridgeltl/SapBERT-from-PubMedBERT-fulltext", read_recipe(Path(bare)))
    assert (known.pooling, list(known.reasons)) == ("cls", ["pooling"])


def test_the_layer_norm_is_that_of_a_model_and_not_of_its_family(tiny_models: Callable[[str], Any]) -> None:
    nomic = read_recipe(tiny_models("nomic_bert").folder)
    assert [choose_defaults(f"nomic-ai/nomic-embed-text-{version}", nomic).layer_norm for version in ("v1", "v1.5")] == [False, True]
    assert guesses("./copy", nomic) == (
        "embedding.layer_norm=true: guessed, as nomic-embed-text-v1.5 needs it and v1 does not; set it to be sure",
    )
    for changes in ({"pooling": "cls"}, {"ends_normalized": True}):
        assert not choose_defaults("./copy", dataclasses.replace(nomic, layer_norm=False, **changes)).layer_norm
    assert not read_recipe(tiny_models("bert").folder).layer_norm


def test_a_nomic_folder_that_ends_in_normalize_or_takes_the_first_token_has_no_layer_norm(save_model: Callable[..., Any]) -> None:
    from sentence_transformers.sentence_transformer.modules import Normalize

    assert not read_recipe(save_model("nomic_bert", Normalize()).folder).layer_norm
    assert not read_recipe(save_model("nomic_bert", pooling="cls").folder).layer_norm


@pytest.mark.parametrize(("similarity", "normalize"), [("cosine", True), ("dot", False), (None, True)])
def test_a_model_for_dot_products_is_not_normalized(folder: Path, similarity: str | None, normalize: bool) -> None:
    edit(folder / "config_sentence_transformers.json", similarity_fn_name=similarity)
    assert resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig()).spec.normalize is normalize
    assert resolve_model(EmbeddingConfig(model=str(folder), normalize=True), ChunkingConfig()).spec.normalize


def test_a_model_for_distances_needs_a_choice(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", similarity_fn_name="euclidean")
    with pytest.raises(
        ConfigError, match=r"similarity_fn_name='euclidean': rows are ranked by inner products here; set embedding.normalize"
    ):
        resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())
    assert resolve_model(EmbeddingConfig(model=str(folder), normalize=True), ChunkingConfig()).spec.normalize


def test_every_known_model_says_something() -> None:
    assert all(known != type(known)() for known in KNOWN_MODELS.values())


def test_a_place_for_titles_in_the_prompt_is_named_with_its_template(tiny_model: Any) -> None:
    gemma = EmbeddingConfig(model=str(tiny_model.folder), prompt="title: none | text: ")
    slot = "title: {title|none} | text: {chunk}"
    (note,) = resolve_model(gemma, ChunkingConfig()).guesses
    assert note.endswith(f"if documents have them, set {slot!r}")
    assert not resolve_model(gemma, ChunkingConfig(template=slot)).guesses
