"""What a sweep found → report.json, report.csv, report.html and a table in the terminal, all of the same rows."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from embedder.core.redaction import mask_secrets
from embedder.core.rotation import digest_array
from embedder.core.spec import Quantization
from embedder.core.storage import Store
from embedder.model.calibration import Calibration
from embedder.observe.environment import describe_environment
from embedder.sweep.config import Precision, SweepConfig
from embedder.sweep.datasets import Retrieval
from embedder.sweep.number_format import show_bytes, show_share, show_usd
from embedder.sweep.page import EMULATED, is_emulated, render_page, show_rate, show_time
from embedder.sweep.recommend import MIN_QUALITY, Row, find_front
from embedder.sweep.run import Swept

REPORT_VERSION = 1
SHOWN_ROWS = 25
QUANTIZATION: dict[Precision, Quantization] = {"float32": "none", "int8": "int8", "binary": "binary", "binary_rescored": "binary"}


def write_report(swept: Swept) -> dict[str, str]:
    """Write the files beside each other, replacing an earlier report; gives their uris by kind."""
    output = swept.study.config.output
    store = output.location.open()
    record = build_record(swept)
    files = {
        "json": json.dumps(record, indent=1, allow_nan=False) + "\n",
        "csv": build_csv(swept.rows, find_front(competing(swept), swept.full)),
        "html": render_page(swept, build_config(swept.study.config, swept.choice.row)),
    }
    for kind, text in files.items():
        file = Store(store.child(f"report.{kind}"), output.storage_options)
        file.remove()
        file.write_once(text.encode())
    return {kind: store.child(f"report.{kind}") for kind in files}


def competing(swept: Swept) -> list[Row]:
    """List the rows that can be run as they are at a cost that is known, those of other models too."""
    return [row for row in swept.rows if row.competes]


def build_record(swept: Swept) -> dict[str, Any]:
    """Give everything as JSON values."""
    study, config = swept.study, swept.study.config
    chosen = swept.choice.row
    return {
        "version": REPORT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": describe_environment(),
        "config": mask_secrets(config.model_dump(mode="json")),
        "spec": study.model.resolved.spec.model_dump(),
        "calibration": name_calibration(study.calibration),
        "source": None if config.source is None else config.source.model_dump(mode="json", include={"uri", "format", "text_columns"}),
        "machine": asdict(swept.machine),
        "corpus": asdict(swept.corpus),
        "datasets": [
            {"name": each.name, "documents": len(each.documents), "queries": len(each.queries)}
            if isinstance(each, Retrieval)
            else {"name": each.name, "pairs": len(each.scores)}
            for each in study.datasets
        ],
        "reference": asdict(swept.reference),
        "choice": {"setting": asdict(chosen.setting) if chosen else None, "why": swept.choice.why},
        "embed": build_config(config, chosen),
        "rows": [build_row(row) for row in swept.rows],
    }


def name_calibration(calibration: Calibration | None) -> dict[str, str | None] | None:
    """Name, as specs do, the artifact whose exits and rotation were tried."""
    if calibration is None:
        return None
    rotation_WW = calibration.rotation_WW
    return {"calibration": calibration.fingerprint, "rotation": None if rotation_WW is None else digest_array(rotation_WW)}


def build_row(row: Row) -> dict[str, Any]:
    """Give one row as JSON values."""
    kept = None
    if row.kept:
        kept = asdict(row.kept) | {"floor": row.kept.floor, "within_noise": row.kept.within_noise}
    cost = asdict(row.cost) | {"usd": row.cost.usd, "bytes_per_vector": row.setting.bytes_per_vector}
    return {"setting": asdict(row.setting), "kept": kept, "metrics": {name: dict(each) for name, each in row.metrics.items()}, "cost": cost}


def build_csv(rows: Sequence[Row], front: Sequence[Row]) -> str:
    """Give one line a setting, its nested figures as columns."""
    records = []
    for row in rows:
        values = build_row(row)
        kept = {f"kept_{name}": value for name, value in (values["kept"] or {}).items()}
        metrics = {f"{dataset} {name}": value for dataset, each in row.metrics.items() for name, value in each.items()}
        records.append(values["setting"] | kept | metrics | values["cost"] | {"on_front": row in front})
    columns = list(dict.fromkeys(name for record in records for name in record))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def build_config(config: SweepConfig, row: Row | None) -> str:
    """Write the YAML that `jobs.embed` runs the recommended setting with; '' where there is none, or no corpus."""
    if row is None or config.source is None:
        return ""
    embedding = config.embedding.model_dump(mode="json", exclude_unset=True) | {"depth": row.setting.depth, "dim": row.setting.dim}
    if row.setting.float8:
        embedding["float8"] = True
    quantization = QUANTIZATION[row.setting.precision]
    if quantization != "none":
        embedding["quantization"] = quantization
    if quantization == "int8" or row.setting.exit == "calibrated" or row.setting.rotated:
        embedding.setdefault("calibration", f"{config.output.uri.rstrip('/')}-calibration")
        embedding["exit"] = row.setting.exit
        if row.setting.rotated:
            embedding["rotate"] = True
    else:
        embedding.pop("calibration", None)
    sections: dict[str, Any] = {"source": config.source.model_dump(mode="json", exclude_unset=True)}
    if config.chunking.model_fields_set:
        sections["chunking"] = config.chunking.model_dump(mode="json", exclude_unset=True)
    sections["embedding"] = embedding
    if config.compute.model_fields_set:
        # around float8 all is bfloat16, whatever the others were measured in
        sections["compute"] = config.compute.model_dump(mode="json", exclude_unset=True, exclude={"dtype"} if row.setting.float8 else None)
    sections["output"] = {"uri": f"{config.output.uri.rstrip('/')}-table"}
    floor = min(config.pick.min_quality or MIN_QUALITY, _floor(row))
    if floor > 0:  # the best that a budget pays for may promise nothing, which no gate can ask for
        sections["gate"] = {"report": f"{config.output.uri.rstrip('/')}/report.json", "min_quality": floor}
        if row.setting.precision == "binary_rescored":
            sections["gate"]["rescored"] = True
    return yaml.safe_dump(mask_secrets(sections), sort_keys=False, allow_unicode=True)


def _floor(row: Row) -> float:
    """Round down, so that the report passes its own gate."""
    assert row.kept is not None
    return max(int(row.kept.floor * 1000) / 1000, 0.0)


def print_report(swept: Swept, files: dict[str, str], console: Console) -> None:
    """Show the front, the full model and the recommended setting, and where the rest is."""
    front = find_front(competing(swept), swept.full)
    chosen = swept.choice.row
    shown = [row for row in swept.rows if row in front or row == swept.full or row == chosen]
    shown += [row for row in swept.rows if row.setting.model != swept.reference.model and row not in shown and row.can_be_embedded]
    shown += [row for row in swept.rows if row.setting == replace(swept.reference, float8=True) and row not in shown]
    table = Table(title=f"{swept.reference.model}: settings that no other is both cheaper and better than", title_justify="left", box=None)
    for name in ("", "setting", "kept", "95%", "speed", "tokens/s", "time", "index", "cost"):
        table.add_column(name, justify="left" if name in ("", "setting") else "right", no_wrap=True)
    for row in sorted(shown, key=lambda row: -(row.kept.share if row.kept else 0))[:SHOWN_ROWS]:
        table.add_row(*table_cells(row, swept))
    console.print(table)
    corpus, about = swept.corpus, "about " if swept.corpus.is_estimate else ""
    console.print(f"\ncorpus: {about}{corpus.documents:,} documents, {corpus.chunks:,} chunks, {corpus.tokens:,} tokens")
    if chosen:
        console.print(f"recommended: {chosen.setting.label()}: {swept.choice.why}")
    else:
        console.print(swept.choice.why)
    if is_emulated(swept):
        console.print(EMULATED)
    console.print(f"report: {files['html']} (also .json, .csv)", soft_wrap=True)


def table_cells(row: Row, swept: Swept) -> list[str]:
    """Lay out a row for the terminal."""
    kept, cost = row.kept, row.cost
    mark = "→" if row == swept.choice.row else ""
    name = row.setting.label() if row.setting.model == swept.reference.model else f"{row.setting.model} {row.setting.label()}"
    bounds = f"{100 * kept.low:.1f}–{100 * kept.high:.1f}" if kept and kept.low is not None and kept.high is not None else ""
    speed = f"{cost.speedup:.2f} ×" if cost.speedup and not cost.is_emulated else ""
    usd = "" if cost.usd is None or cost.is_emulated else show_usd(cost.usd)
    share = show_share(kept.share) if kept else "–"
    return [
        mark,
        name,
        share,
        bounds,
        speed,
        show_rate(cost),
        show_time(cost),
        show_bytes(cost.index_bytes),
        usd,
    ]
