"""The spec is the space: every setting that changes a vector changes the space id, and no other does."""

import pytest

from embedder.core.spec import EmbeddingSpec, digest
from embedder.core.units import PartName, task_key

SPEC = EmbeddingSpec(
    model="m", revision=None, model_checksum="c", depth=6, final_norm="none", pooling="mean", layer_norm=False, prompt="",
    query_prompt="", max_tokens=256, chunking=True, overlap_tokens=0, dim=384, normalize=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"model_checksum": "d"}, {"depth": 5}, {"final_norm": "apply"}, {"pooling": "cls"}, {"layer_norm": True}, {"prompt": "passage: "},
        {"max_tokens": 128}, {"chunking": False}, {"overlap_tokens": 8}, {"dim": 64}, {"normalize": False}, {"recipe_version": 2},
        {"rotation": "r"}, {"float8": True},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_setting_that_changes_a_vector_changes_the_space_id(change: dict[str, object]) -> None:
    other = SPEC.model_copy(update=change)
    assert other.space_id != SPEC.space_id
    (name, value), (difference,) = next(iter(change.items())), SPEC.differences(other)
    assert difference == f"{name}: {getattr(SPEC, name)!r} → {value!r}"


@pytest.mark.parametrize("change", [{"model": "/elsewhere/m"}, {"revision": "abc"}, {"query_prompt": "query: "}])
def test_a_moved_model_or_another_query_prompt_is_the_same_space(change: dict[str, object]) -> None:
    assert SPEC.model_copy(update=change).space_id == SPEC.space_id


def test_the_space_id_is_stable_across_releases() -> None:
    assert SPEC.space_id == "d2329547aaf6fc409c38b2cbfeddd5b2"


def test_a_digest_refuses_values_without_a_stable_encoding() -> None:
    with pytest.raises(TypeError):
        digest(object())
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))


def test_a_part_name_survives_the_file_system_and_foreign_files_are_not_parts() -> None:
    name = PartName(task_key("a"), digest("v"), 8192, 16384, True)
    assert PartName.parse(str(name)) == name
    assert PartName.parse("part-0000.parquet") is None
    assert PartName.parse(str(name) + ".tmp") is None
