"""A report of a few rows: which of them a run is judged by, and which runs it says nothing of."""

import json
from pathlib import Path
from typing import Any

import pytest

from embedder.config import EmbedConfig
from embedder.errors import ConfigError
from embedder.gate import check_gate
from embedder.spec import EmbeddingSpec

SPEC = EmbeddingSpec(
    model="m", revision=None, model_checksum="c", depth=6, final_norm="none", pooling="mean", layer_norm=False, prompt="",
    query_prompt="", max_tokens=256, chunking=True, overlap_tokens=0, dim=384, normalize=True,
)  # fmt: skip
SETTING = {"model": "m", "depth": 6, "dim": 384, "precision": "float32", "exit": "native", "query_side": "same"}
FLOORS: list[tuple[float, dict[str, Any]]] = [(1.0, {}), (0.8, {"precision": "binary"}), (0.98, {"precision": "binary_rescored"})]


def check(folder: Path, spec: EmbeddingSpec, gate: dict[str, Any] | None = None, **report: Any) -> None:
    """Put a run of this spec to a report that recommends bits, rescored."""
    rows = [{"setting": SETTING | setting, "kept": {"floor": floor}} for floor, setting in FLOORS]
    record = {"spec": SPEC.model_dump(), "source": None, "reference": SETTING, "rows": rows, "choice": {"setting": rows[-1]["setting"]}}
    (folder / "report.json").write_text(json.dumps(record | report))
    sections = {"source": {"uri": "corpus"}, "embedding": {"model": "m"}, "output": {"uri": "out"}}
    config = EmbedConfig.model_validate(sections | {"gate": {"report": str(folder / "report.json")} | (gate or {})})
    check_gate(config, spec)


def test_bits_are_judged_as_they_will_be_searched(tmp_path: Path) -> None:
    bits = SPEC.model_copy(update={"quantization": "binary"})
    with pytest.raises(ConfigError, match=r"precision binary, .* keeps 0\.800 .* dim 384, binary with gate\.rescored true\)"):
        check(tmp_path, bits)
    check(tmp_path, bits, {"rescored": True})
    with pytest.raises(ConfigError, match=r"precision binary_rescored, .* keeps 0\.980"):
        check(tmp_path, bits, {"rescored": True, "min_quality": 0.99})
    with pytest.raises(ConfigError, match=r"gate\.rescored=true: bits are rescored, and embedding\.quantization='none'"):
        check(tmp_path, SPEC, {"rescored": True})
