"""Problems that a sweep reports before it reads a model."""

from pathlib import Path

import pytest

from embedder.core.errors import ConfigError, EmbedderError, StorageError, collect_problem, join_problems
from embedder.core.storage import Location
from embedder.sweep.config import SweepConfig
from embedder.sweep.prepare import _check_names


@pytest.mark.parametrize(
    ("quality", "name"),
    [({"sts": ["a/dev.csv", "b/dev.csv"]}, "dev"), ({"beir": ["a/x", "b/x/"]}, "x"), ({"beir": ["x"], "sts": ["x.csv"]}, "x"),
     ({"sts": ["fidelity.csv"]}, "fidelity")],
)  # fmt: skip
def test_two_sets_of_one_name_are_refused(quality: dict[str, list[str]], name: str) -> None:
    config = SweepConfig.model_validate({"embedding": {"model": "m"}, "quality": quality, "output": {"uri": "out"}})
    assert _check_names(config) == [f"quality: two sets are named {name!r} after their folder or file; rename one"]


def test_a_storage_failure_keeps_its_kind_unless_a_setting_is_wrong_too(tmp_path: Path) -> None:
    problems: list[EmbedderError] = []
    assert collect_problem(problems, Location(str(tmp_path)).open) is not None
    assert problems == []
    (tmp_path / "file").touch()
    assert collect_problem(problems, Location(str(tmp_path / "file/folder")).open().check_writable) is None
    assert type(join_problems(problems)) is StorageError
    both = join_problems([*problems, ConfigError("embedding.depth=0: choose 1 to 6")])
    assert type(both) is ConfigError
    assert str(both) == f"{problems[0]}\nembedding.depth=0: choose 1 to 6"
