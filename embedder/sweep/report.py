"""The result of a sweep → report.json, report.csv, report.html and a table in the terminal, all of the same rows."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from embedder.core.redaction import mask_secrets
from embedder.core.rotation import digest_array
from embedder.observe.environment import describe_environment
from embedder.sweep.config import SweepConfig
from embedder.sweep.cost import show_usd
from embedder.sweep.page import (
    EMULATED,
    PER_DOCUMENT,
    is_emulated,
    is_full,
    render_page,
    show_corpus,
    show_figures,
    show_fitted,
    show_name,
    show_sizes,
)
from embedder.sweep.recommend import MIN_QUALITY, Row, find_front
from embedder.sweep.retrieval import QUANTIZATION
from embedder.sweep.run import SweepResult

REPORT_VERSION = 1


def write_report(result: SweepResult) -> dict[str, str]:
    """Write report.json, .csv and .html, replacing earlier ones; return their uris by kind."""
    folder = result.plan.config.output.location
    contents = {
        "json": json.dumps(build_record(result), indent=1, allow_nan=False) + "\n",
        "csv": build_csv(result.rows, find_front(result.rows, result.full)),
        "html": render_page(result, build_config(result.plan.config, result.chosen)),
    }
    files = {kind: folder.child(f"report.{kind}") for kind in contents}
    for kind, text in contents.items():
        store = files[kind].open()
        store.remove()
        store.write_once(text.encode())
    return {kind: file.uri for kind, file in files.items()}


def build_record(result: SweepResult) -> dict[str, Any]:
    """Return the result as JSON values."""
    plan, config, chosen = result.plan, result.plan.config, result.chosen
    calibration = plan.calibration
    rotation = digest_array(calibration.rotation_WW) if calibration and calibration.rotation_WW is not None else None
    return {
        "version": REPORT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": describe_environment(),
        "config": mask_secrets(config.model_dump(mode="json")),
        "spec": plan.model.resolved.spec.model_dump(),
        "chunkings": {model.chunking: model.resolved.spec.model_dump() for model in plan.models},
        "calibration": calibration and {"calibration": calibration.fingerprint, "rotation": rotation, "fitted_on": plan.fitted_on},
        "source": None if config.source is None else config.source.model_dump(mode="json", include={"uri", "format", "text_columns"}),
        "machine": asdict(result.machine),
        "corpus": asdict(result.corpus),
        "datasets": [{"name": each.name} | each.sizes for each in plan.datasets],
        "reference": asdict(result.full.setting),
        "choice": {"setting": asdict(chosen.setting) if chosen else None, "why": result.why},
        "embed": build_config(config, chosen),
        "rows": [build_row(row) for row in result.rows],
    }


def build_row(row: Row) -> dict[str, Any]:
    """Return one row as JSON values."""
    kept = asdict(row.kept) | {"floor": row.kept.floor, "within_noise": row.kept.within_noise} if row.kept else None
    cost = asdict(row.cost) | {"usd": row.cost.usd, "bytes_per_vector": row.setting.bytes_per_vector}
    return {"setting": asdict(row.setting), "kept": kept, "metrics": {name: dict(each) for name, each in row.metrics.items()}, "cost": cost}


def build_csv(rows: Sequence[Row], front: Sequence[Row]) -> str:
    """Return one line a setting, its nested values as columns."""
    records = []
    for row in rows:
        values = build_row(row)
        kept = {f"kept_{name}": value for name, value in (values["kept"] or {}).items()}
        metrics = {f"{dataset} {name}": value for dataset, each in row.metrics.items() for name, value in each.items()}
        records.append(values["setting"] | kept | metrics | values["cost"] | {"on_front": row in front})
    columns = list(dict.fromkeys(name for record in records for name in record))
    buffer = io.StringIO()
    rows_of_values = ([record.get(name, "") for name in columns] for record in records)
    csv.writer(buffer, lineterminator="\n").writerows([_as_cell(value) for value in values] for values in [columns, *rows_of_values])
    return buffer.getvalue()


def _as_cell(value: object) -> object:
    """Return a value that a spreadsheet takes for no formula: a text that begins like one gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def build_config(config: SweepConfig, row: Row | None) -> str:
    """Return the YAML that `jobs.embed` runs the setting with; '' without a setting or a corpus."""
    if row is None or config.source is None:
        return ""
    setting, folder, quantization = row.setting, config.output.uri.rstrip("/"), QUANTIZATION[row.setting.precision]
    sections = config.model_dump(mode="json", exclude_unset=True, include={"source", "chunking", "embedding", "compute"})
    if setting.chunking:
        sections["chunking"] = dict(config.chunkings)[setting.chunking].model_dump(mode="json", exclude_unset=True)
    embedding = sections["embedding"] | {"depth": setting.depth, "dim": setting.dim}
    embedding |= {"float8": True} if setting.float8 else {}
    embedding |= {"quantization": quantization} if quantization != "none" else {}
    if quantization == "int8" or setting.exit == "calibrated" or setting.rotated:
        embedding = {"calibration": f"{folder}-calibration"} | embedding | {"exit": setting.exit}
        embedding |= {"rotate": True} if setting.rotated else {}
    else:
        embedding.pop("calibration", None)
    if setting.float8:  # computes in bfloat16, whatever dtype the other settings were measured in
        sections.get("compute", {}).pop("dtype", None)
    sections |= {"embedding": embedding, "output": {"uri": f"{folder}-table"}}
    assert row.kept is not None
    floor = min(
        config.pick.min_quality or MIN_QUALITY, int(row.kept.floor * 1000) / 1000
    )  # rounded down, so that the report passes its gate
    if floor > 0:  # the best within a budget may keep nothing for certain, and a gate of 0 is refused
        sections["gate"] = {"report": f"{folder}/report.json", "min_quality": floor}
        if setting.precision == "binary_rescored":
            sections["gate"]["rescored"] = True
    return yaml.safe_dump(mask_secrets(sections), sort_keys=False, allow_unicode=True)


def print_report(result: SweepResult, files: Mapping[str, str], console: Console) -> None:
    """Print the front, the full model with each chunking, other models and the recommended setting, and the location of the report."""
    chosen, coarse, chunked = result.chosen, replace(result.full.setting, float8=True), bool(result.full.setting.chunking)
    listed = [*find_front(result.rows, result.full), chosen]
    shown = [
        row
        for row in result.rows
        if row in listed
        or is_full(row, result)
        or row.setting == coarse
        or (row.setting.model != result.full.setting.model and row.can_be_embedded)
    ]
    table = Table(
        title=f"{result.full.setting.model}: settings that no other is both cheaper and better than", title_justify="left", box=None
    )
    for name in ("", "setting", "kept", "95%", "speed", "tokens/s", "time", "index", "cost", *(PER_DOCUMENT if chunked else ())):
        table.add_column(name, justify="left" if name in ("", "setting") else "right", no_wrap=True)
    for row in sorted(shown, key=lambda row: -row.share):
        share, bounds, *others = show_figures(row)
        is_measured = not row.cost.is_emulated
        speed = f"{row.cost.speedup:.2f} ×" if row.cost.speedup and is_measured else ""
        usd = show_usd(row.cost.usd) if row.cost.usd is not None and is_measured else ""
        sizes = show_sizes(row) if chunked else ()
        table.add_row("→" if row == chosen else "", show_name(row, result), share, bounds, speed, *others, usd, *sizes)
    console.print(table)
    console.print(f"\ncorpus: {show_corpus(result)}")
    if result.plan.fitted_on:
        console.print(f"calibration: {show_fitted(*result.plan.fitted_on)}")
    console.print(f"recommended: {chosen.setting.label}: {result.why}" if chosen else result.why)
    if is_emulated(result):
        console.print(EMULATED)
    console.print(f"report: {files['html']} (also .json, .csv)", soft_wrap=True)
