"""The row of a report that a run is checked against, and runs that the report does not cover."""

import json
from pathlib import Path
from typing import Any

import pytest

from embedder.config.embed import EmbedConfig
from embedder.core.errors import ConfigError
from embedder.core.spec import EmbeddingSpec
from embedder.run.quality_gate import check_quality_gate

SPEC = EmbeddingSpec(
    model="m", revision=None, model_checksum="c", depth=6, final_norm="none", pooling="mean", layer_norm=False, prompt="",
    query_prompt="", max_tokens=256, chunking=True, overlap_tokens=0, dim=384, normalize=True,
)  # fmt: skip
SECTIONS: dict[str, Any] = {"source": {"uri": "corpus"}, "embedding": {"model": "m"}, "output": {"uri": "out"}}
SETTING = {"model": "m", "depth": 6, "dim": 384, "precision": "float32", "exit": "native", "query_side": "same"}
CALIBRATED = SPEC.model_copy(update={"depth": 3, "exit": "calibrated", "query_depth": 6, "calibration": "abc", "rotation": None})
FLOORS: list[tuple[float, dict[str, Any]]] = [(1.0, {}), (0.8, {"precision": "binary"}), (0.98, {"precision": "binary_rescored"})]
FLOORS += [(1.0, {"depth": 3, "exit": "calibrated", "query_side": "full"}), (1.0, {"rotated": True}), (1.0, {"precision": "int8"})]


def check(folder: Path, spec: EmbeddingSpec, gate: dict[str, Any] | None = None, **report: Any) -> None:
    """Check a run of this spec against a report that recommends rescored binary codes."""
    rows = [{"setting": SETTING | setting, "kept": {"floor": floor}} for floor, setting in FLOORS]
    record = {"spec": SPEC.model_dump(), "source": None, "reference": SETTING, "rows": rows, "choice": {"setting": rows[2]["setting"]}}
    (folder / "report.json").write_text(json.dumps(record | report))
    config = EmbedConfig.model_validate(SECTIONS | {"gate": {"report": str(folder / "report.json")} | (gate or {})})
    check_quality_gate(config, spec)


def test_binary_codes_are_checked_as_they_will_be_searched(tmp_path: Path) -> None:
    bits = SPEC.model_copy(update={"quantization": "binary"})
    with pytest.raises(ConfigError, match=r"precision binary, .* keeps 0\.800 .* dim 384, binary with gate\.rescored true\)"):
        check(tmp_path, bits)
    check(tmp_path, bits, {"rescored": True})
    with pytest.raises(ConfigError, match=r"precision binary_rescored, .* keeps 0\.980"):
        check(tmp_path, bits, {"rescored": True, "min_quality": 0.99})
    with pytest.raises(ConfigError, match=r"gate\.rescored=true: bits are rescored, and embedding\.quantization='none'"):
        check(tmp_path, SPEC, {"rescored": True})


def test_a_report_of_another_calibration_is_refused(tmp_path: Path) -> None:
    rotated = SPEC.model_copy(update={"calibration": "abc", "rotation": "r"})
    measured = {"calibration": "abc", "rotation": "r"}
    for spec in (CALIBRATED, rotated, rotated.model_copy(update={"calibration": "of the same axes"})):
        check(tmp_path, spec, calibration=measured)
    with pytest.raises(ConfigError, match="of another run \\(calibration: 'other' → 'abc'\\)"):
        check(tmp_path, CALIBRATED, calibration=measured | {"calibration": "other"})
    with pytest.raises(ConfigError, match="of another run \\(rotation: 'other' → 'r'\\)"):
        check(tmp_path, rotated, calibration=measured | {"rotation": "other"})
    with pytest.raises(ConfigError, match="of another run \\(calibration: None → 'abc'\\)"):
        check(tmp_path, CALIBRATED, calibration=None)
    check(tmp_path, SPEC.model_copy(update={"quantization": "int8", "calibration": "abc"}), calibration=None)


def test_a_report_without_a_calibration_covers_settings_without_one(tmp_path: Path) -> None:
    check(tmp_path, SPEC)
    with pytest.raises(ConfigError, match="an older sweep, which does not name the calibration it measured\\); sweep this one"):
        check(tmp_path, CALIBRATED)


@pytest.mark.parametrize(("fitted_on", "warns"), [([30, 100], True), ([5, 100], False), (None, False)])
def test_quality_that_was_measured_on_documents_fitted_on_is_said(
    fitted_on: list[int] | None, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(tmp_path, CALIBRATED, calibration={"calibration": "abc", "rotation": None, "fitted_on": fitted_on})
    assert ("fitted on 30 of the 100 documents that quality was measured on; unseen ones keep less" in caplog.text) == warns


def test_a_report_of_another_query_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of another run \\(query_prompt: '' → 'query: '\\)"):
        check(tmp_path, SPEC.model_copy(update={"query_prompt": "query: "}))


def test_a_least_fidelity_needs_no_report_and_is_refused_without_a_calibrated_exit(tmp_path: Path) -> None:
    config = EmbedConfig.model_validate(SECTIONS | {"gate": {"min_fidelity": 0.9}})
    check_quality_gate(config, CALIBRATED)
    with pytest.raises(
        ConfigError, match=r"gate\.min_fidelity=0\.9: is measured behind a calibrated exit only, .* depth 6 is native; leave"
    ):
        check_quality_gate(config, SPEC)
    with pytest.raises(ConfigError, match="of another run \\(calibration"):
        check(tmp_path, CALIBRATED, {"min_fidelity": 0.9}, calibration=None)


@pytest.mark.parametrize(
    ("gate", "problem"),
    [
        ({}, "neither report nor min_fidelity is set"),
        ({"min_fidelity": 0.9, "rescored": True}, "are about a report"),
        ({"min_fidelity": 0.9, "min_quality": 0.9}, "are about a report"),
        ({"min_fidelity": 0}, "greater than 0"),
    ],
)
def test_a_gate_without_effect_is_refused(gate: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        EmbedConfig.model_validate(SECTIONS | {"gate": gate})
