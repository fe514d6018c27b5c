"""Problems that a sweep reports before it reads a model."""

import pytest

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
