"""Read a table on disk and a job's output as JSON: exact values if equal in every run, else their types."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

VARYING = {
    "run_id", "commit_id", "started", "seconds", "bytes_added", "driver_peak_bytes", "tokens_per_second", "padded_tokens",
    "padding_share", "encode_seconds", "read_seconds", "write_seconds", "probe", "published", "environment", "config_digest",
    "checksum", "digest",
}  # fmt: skip
"""Keys whose values differ between runs or machines."""
SOMETIMES = {"steady_tokens_per_second", "encoder_busy_share"}
"""Keys whose values are null in some runs and a number in others."""


def describe(value: Any) -> Any:
    """Replace values that vary by their type; of an environment keep the keys that every machine has."""
    if isinstance(value, list):
        return [describe(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, each in value.items():
        if key == "environment":
            found[key] = sorted(set(each) - {"revision", "openvino"})
        elif key in SOMETIMES:
            found[key] = "float or null"
        elif key == "failures":
            found[key] = sorted(each)  # messages may be reworded
        else:
            found[key] = type(each).__name__ if key in VARYING else describe(each)
    return found


def read_log(table: Path) -> list[dict[str, Any]]:
    """Read each commit of a Delta table: its actions by kind, without times and sizes."""
    return [_describe_commit(path) for path in sorted((table / "_delta_log").glob("*.json"))]


def _describe_commit(path: Path) -> dict[str, Any]:
    commit: dict[str, Any] = {"add": [], "remove": []}
    for line in path.read_text().splitlines():
        [(kind, action)] = json.loads(line).items()
        if kind in ("add", "remove"):
            stats = json.loads(action.get("stats") or "{}")
            commit[kind].append([action["path"], action["dataChange"], stats.get("numRecords")])
            commit.setdefault("checksums", []).extend([len(stats["checksum"])] if "checksum" in stats else [])
        elif kind == "metaData":
            columns = [json.dumps(field) for field in json.loads(action["schemaString"])["fields"]]
            description = json.loads(action["description"]) if action.get("description") else None
            commit[kind] = {"columns": columns, "partitions": action["partitionColumns"], "description": description}
        elif kind == "commitInfo":
            records = {key: describe(each) for key, each in action.items() if isinstance(each, dict) and "spec" in each}
            commit[kind] = {"operation": action["operation"], "records": records}
        elif kind == "txn":
            commit[kind] = [action["appId"], action["version"]]
    return {name: sorted(value) if name in ("add", "remove") else value for name, value in commit.items()}


def committed(log: list[dict[str, Any]]) -> list[str]:
    """List the parts that a log's newest version holds."""
    names: set[str] = set()
    for commit in log:
        names = names.union(name for name, *_ in commit["add"]).difference(name for name, *_ in commit["remove"])
    return sorted(names)


def read_table(table: Path) -> dict[str, Any]:
    """Read the newest version: log, parts, rows in their order and quarantine. Vectors are apart, because they are compared by angle."""
    log = read_log(table)
    parts, rows, vectors = [], [], []
    for name in committed(log):
        file = pq.ParquetFile(table / name)
        data = file.read()
        footer = describe(json.loads(file.metadata.metadata[b"embedder"]))
        columns = [[field.name, str(field.type)] for field in file.schema_arrow]
        own = {"name": name, "rows": data.num_rows, "stats": footer["stats"]}
        parts.append(own if parts else own | {"columns": columns, "footer": footer})
        assert not parts or columns == parts[0]["columns"], name
        rows += _to_lists(data.drop_columns(["embedding"]))
        vectors += _to_numbers(data["embedding"])
    return {"log": log, "parts": parts, "rows": rows, "vectors": vectors, "quarantine": read_quarantine(table)}


def read_quarantine(table: Path) -> dict[str, Any]:
    """Read the table of records that were not embedded."""
    log = read_log(table / "_quarantine")
    tables = [pq.read_table(table / "_quarantine" / name, partitioning=None) for name in committed(log)]
    columns = [[field.name, str(field.type)] for field in tables[0].schema] if tables else []
    rows = [row for each in tables for row in _to_lists(each)]
    return {"parts": committed(log), "columns": columns, "rows": rows}


def _to_numbers(column: pa.ChunkedArray) -> list[list[float]]:
    return [list(each) if isinstance(each, bytes) else [round(number, 4) for number in each] for each in column.to_pylist()]


def _to_lists(table: pa.Table) -> list[list[Any]]:
    """Read rows as lists in which times, lists and structs are text."""
    plain = (str, int, float, bool, type(None))
    return [[each if isinstance(each, plain) else str(each) for each in row.values()] for row in table.to_pylist()]


def lay_out(value: Any, indent: str = "") -> str:
    """Write JSON with one line for each list or mapping that holds no others."""
    if isinstance(value, dict | list) and any(
        isinstance(each, dict | list) for each in (value.values() if isinstance(value, dict) else value)
    ):
        inner = f"{indent} "
        if isinstance(value, list):
            return "[\n" + ",\n".join(inner + lay_out(each, inner) for each in value) + f"\n{indent}]"
        lines = (f"{inner}{json.dumps(key)}: {lay_out(each, inner)}" for key, each in sorted(value.items()))
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def find_differences(golden: Any, now: Any, path: str = "") -> list[str]:
    """List where values differ; a mapping may have more keys than the golden one, and vectors may differ by what rounding does."""
    if path.endswith("/vectors") and len(golden) == len(now):
        return [f"{path}[{row}]" for row, pair in enumerate(zip(golden, now, strict=True)) if not _is_near(*map(np.array, pair))]
    if isinstance(golden, dict) and isinstance(now, dict):
        gone = [f"{path}/{key}: is gone" for key in golden if key not in now]
        return gone + [line for key in golden if key in now for line in find_differences(golden[key], now[key], f"{path}/{key}")]
    if isinstance(golden, list) and isinstance(now, list) and len(golden) == len(now):
        pairs = enumerate(zip(golden, now, strict=True))
        return [line for place, pair in pairs for line in find_differences(*pair, f"{path}[{place}]")]
    return [] if golden == now else [f"{path}: {golden!r:.200} → {now!r:.200}"]


def _is_near(golden: np.ndarray, now: np.ndarray) -> bool:
    if golden.shape != now.shape or golden.dtype != now.dtype:
        return False
    if golden.dtype.kind == "i":
        return int(np.abs(golden - now).max()) <= 1
    return float(golden @ now) >= 0.99999 * float(np.linalg.norm(golden) * np.linalg.norm(now))


def flatten(text: str) -> dict[str, Any]:
    """Read a YAML config as dotted keys and their values."""

    def walk(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {path: value}
        return {key: each for name, inner in value.items() for key, each in walk(inner, f"{path}.{name}" if path else name).items()}

    return walk(yaml.safe_load(text), "")


def read_flags(text: str) -> dict[str, str | None]:
    """Read the flags of a help text that are not settings, spelled with hyphens and without negations, each with its default."""
    found: dict[str, str] = {}
    names: tuple[str, ...] = ()
    for line in text.splitlines():
        plain = line.strip("│ ")
        if plain.startswith("actions: "):
            found |= dict.fromkeys(plain.split()[1:], "")
        if plain.startswith("-"):
            names = tuple(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", re.split(r" {2,}", plain)[0]))
        elif not line.startswith(("│ ", "  ")) or not plain:
            names = ()
        for name in names:
            found[name] = f"{found.get(name, '')} {plain}"
    spelled = {name.replace("_", "-"): block for name, block in found.items() if "." not in name}
    negations = {name for name in spelled if name.startswith("--no-") and f"--{name[5:]}" in spelled}
    return {name: _read_default(block) for name, block in spelled.items() if name not in negations}


def _read_default(block: str) -> str | None:
    values = re.findall(r"\((default: [^()]*|required)\)", block)
    return values[-1] if values else None
