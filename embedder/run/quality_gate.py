"""Check a run's settings against the report of a sweep: too little quality kept, or not measured, is a ConfigError.

`gate.min_fidelity` is checked by drift.py, on what the run embeds.
"""

import json
import logging
from typing import Any

from embedder.config.embed import EmbedConfig
from embedder.core.errors import ConfigError, StorageError
from embedder.core.retry import is_transient
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Store

_SWEPT = frozenset({"model", "revision", "depth", "dim", "query_depth", "exit", "quantization", "calibration", "rotation", "float8"})
"""Fields of a spec that a report covers several values of, or that do not change the space by themselves."""
_LATER = {"rotated": False, "float8": False, "chunking": ""}
"""Values of fields that reports did not have at first."""
MOST_FITTED = 0.05
"""Share of documents fitted on, among those that quality is measured on, above which the gate warns."""
_PRECISIONS = {"none": "float32", "int8": "int8", "binary": "binary"}
"""The sweep's names of quantizations."""

logger = logging.getLogger("embedder")


def check_quality_gate(config: EmbedConfig, spec: EmbeddingSpec) -> None:
    """Raise ConfigError if the report does not show that the settings keep enough quality; without a gate, all settings pass."""
    gate = config.gate
    if gate is None:
        return
    if gate.min_fidelity is not None and spec.exit != "calibrated":
        raise ConfigError(
            f"gate.min_fidelity={gate.min_fidelity:g}: is measured behind a calibrated exit only, and the exit at depth {spec.depth} is "
            f"{spec.exit}; leave it out"
        )
    if gate.report is None:
        return
    report = _read_report(gate.report)
    spaces = {name: _other_space(swept, spec) for name, swept in report.get("chunkings", {"": report["spec"]}).items()}
    chunking = min(spaces, key=lambda name: len(spaces[name]))
    problems = [*spaces[chunking], *_other_calibration(report, spec), *_other_source(report["source"], config)]
    if problems:
        raise ConfigError(f"gate.report={gate.report!r}: of another run ({'; '.join(problems)}); sweep this one, or leave the gate out")
    if gate.rescored and spec.quantization != "binary":
        raise ConfigError(
            f"gate.rescored=true: bits are rescored, and embedding.quantization={spec.quantization!r}; leave one of the two out"
        )
    precision = "binary_rescored" if gate.rescored else _PRECISIONS[spec.quantization]
    wanted = {"model": report["reference"]["model"], "depth": spec.depth, "dim": spec.dim, "precision": precision}
    wanted |= {"exit": spec.exit, "query_side": "full" if spec.exit == "calibrated" else "same"}
    wanted |= {"rotated": spec.rotation is not None, "float8": spec.float8, "chunking": chunking}
    rows = [row for row in report["rows"] if all((_LATER | row["setting"])[name] == value for name, value in wanted.items())]
    name = ", ".join(f"{key} {value}" for key, value in wanted.items() if key != "model" and value != "")
    if not rows:
        raise ConfigError(f"gate.report={gate.report!r}: holds no row for {name}; add it to the sweep's grid and sweep again")
    fitted_on = (report.get("calibration") or {}).get("fitted_on")
    if spec.exit == "calibrated" and fitted_on and fitted_on[0] > MOST_FITTED * fitted_on[1]:
        logger.warning(
            "gate.report=%r: the calibration was fitted on %d of the %d documents that quality was measured on; unseen ones keep less",
            *(gate.report, *fitted_on),
        )
    kept = rows[0]["kept"]
    floor = kept["floor"] if kept else 0.0
    if floor < gate.min_quality:
        raise ConfigError(
            f"gate.min_quality={gate.min_quality}: {name} keeps {floor:.3f} of the full model's quality (lower end of 95%); "
            f"choose another setting (recommended: {_recommended(report)}), or lower the gate"
        )


def _read_report(uri: str) -> dict[str, Any]:
    try:
        with Store(uri).open_input() as file:
            report: dict[str, Any] = json.load(file)
        if not {"spec", "source", "reference", "rows", "choice"} <= set(report):
            raise ValueError("keys are missing")
    except (StorageError, ValueError, TypeError) as error:
        if is_transient(error):
            raise
        raise ConfigError(f"gate.report={uri!r}: not a report of jobs.sweep ({error}); give its report.json") from error
    return report


def _other_space(swept: dict[str, Any], spec: EmbeddingSpec) -> list[str]:
    mine = spec.model_dump(mode="json")
    names = [name for name in swept if name in mine and name not in _SWEPT]
    return [f"{name}: {swept[name]!r} → {mine[name]!r}" for name in names if swept[name] != mine[name]]


def _other_calibration(report: dict[str, Any], spec: EmbeddingSpec) -> list[str]:
    """Compare exit maps and rotations. The ranges of int8 are not compared: the sweep fits its own."""
    needed = {"calibration": spec.calibration} if spec.exit == "calibrated" else {"rotation": spec.rotation} if spec.rotation else {}
    if needed and "calibration" not in report:
        return ["an older sweep, which does not name the calibration it measured"]
    swept = report.get("calibration") or {}
    return [f"{name}: {swept.get(name)!r} → {mine!r}" for name, mine in needed.items() if swept.get(name) != mine]


def _other_source(swept: dict[str, Any] | None, config: EmbedConfig) -> list[str]:
    if swept is None:
        return []
    mine = config.source.model_dump(mode="json", include=set(swept))
    return [f"source.{name}: {swept[name]!r} → {mine[name]!r}" for name in swept if swept[name] != mine[name]]


def _recommended(report: dict[str, Any]) -> str:
    setting = report["choice"]["setting"]
    if setting is None:
        return "none"
    precision = "binary with gate.rescored true" if setting["precision"] == "binary_rescored" else setting["precision"]
    chunking = f", chunking {setting['chunking']}" if setting.get("chunking") else ""
    return f"depth {setting['depth']}, dim {setting['dim']}, {precision}{chunking}"
