"""Seals a run record, so that a log that was damaged, edited or changed by another tool is not believed.

The record of each commit holds a checksum of itself, and a digest of the parts and columns of its version.
"""

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from embedder.core.columns import PartNames, find_foreign
from embedder.core.errors import TableDamagedError
from embedder.core.spec import RECIPE_VERSION, EmbeddingSpec, digest
from embedder.core.units import complete_parts
from embedder.table.parts import group_by_task

if TYPE_CHECKING:
    from deltalake import DeltaTable

READER_FEATURES = frozenset({"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"})
"""Delta features that change nothing in the rows of a part's file. Deletion vectors and column mapping do."""

CHECKSUM = "checksum"
"""Key of the record's own checksum."""
HOLDS = "holds"
"""Key of the digests of the version that the record was committed with."""

RESTORE = (
    "restore the log from a backup, or the version before: DeltaTable(uri).restore(VERSION). Without either, delete the folder _delta_log "
    "and run the job that made the table: it adopts the parts on storage"
)


class Problem(NamedTuple):
    """How a version differs from what embedder wrote; `is_mendable`: by a commit of parts alone."""

    what: str
    is_mendable: bool


def seal_record(info: Mapping[str, Any], rows: Mapping[str, int], sizes: Mapping[str, int], schema: pa.Schema) -> dict[str, Any]:
    """Return a run record as the log stores it, with its seal for these parts and columns. NaN becomes null, as in the log."""
    held = {name: value for name, value in info.items() if name != CHECKSUM} | {HOLDS: describe_state(rows, sizes, schema)}
    plain = json.loads(json.dumps(held), parse_float=_shorten, parse_constant=lambda _: None)
    return {**plain, CHECKSUM: _digest_record(plain)}


def _shorten(number: str) -> float:
    """Read a float at 15 digits, since delta-rs may change the last of 17 when it writes the log; a float32 is kept as it is."""
    value = float(number)
    return value if _as_float32(value) == value else float(f"{value:.15g}")


def _as_float32(value: float | str) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _digest_record(info: Mapping[str, Any]) -> str:
    """Digest a record without its checksum. Floats count as float32, so that a change of their last digit does not show."""
    plain = {name: value for name, value in info.items() if name != CHECKSUM}
    return digest(json.loads(json.dumps(plain), parse_float=lambda number: _as_float32(number).hex(), parse_constant=str))


def describe_state(rows: Mapping[str, int], sizes: Mapping[str, int], schema: pa.Schema) -> dict[str, Any]:
    """Return the counts and digests of a version; the columns are those that Delta stores."""
    listed = "\n".join(f"{name} {sizes[name]} {rows[name]}" for name in sorted(rows))
    return {
        "parts": len(rows),
        "rows": sum(rows.values()),
        "digest": blake2b(listed.encode(), digest_size=16).hexdigest(),
        "columns": digest([[field.name, str(field.type), field.nullable] for field in schema]),
    }


def check_record(info: Mapping[str, Any], where: str) -> None:
    """Raise TableDamagedError for a record that is not as it was written, or whose spec this version cannot read.

    Records of earlier versions have no checksum of their own; their spec must still give their space id.
    """
    check_seal(info, where)
    spec = parse_spec(info.get("spec"), where)
    if info.get("space_id") != spec.space_id:
        raise TableDamagedError(
            f"{where}: the spec in its log gives space {spec.space_id}, and the vectors are of space {info.get('space_id')}: the log was "
            f"edited or is damaged; {RESTORE}"
        )


def check_seal(info: Mapping[str, Any], where: str) -> None:
    """Raise TableDamagedError for a record that does not have its checksum, whatever its spec."""
    if CHECKSUM in info and _digest_record(info) != info[CHECKSUM]:
        raise TableDamagedError(f"{where}: the run record in its log was edited or is damaged (its checksum differs); {RESTORE}")


def parse_spec(values: Any, where: str) -> EmbeddingSpec:
    """Return a stored spec; TableDamagedError if it is of a newer version, or has other fields or types."""
    recipe = values.get("recipe_version") if isinstance(values, Mapping) else None
    if isinstance(recipe, int) and recipe > RECIPE_VERSION:
        raise TableDamagedError(
            f"{where}: its vectors are of recipe version {recipe}, and this embedder knows {RECIPE_VERSION}; upgrade embedder"
        )
    try:
        return EmbeddingSpec.model_validate(values)
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'spec'}: {each['msg']}" for each in error.errors()[:5])
        raise TableDamagedError(
            f"{where}: the spec in its log cannot be read ({fields}); upgrade embedder if a newer one wrote it, else {RESTORE}"
        ) from error


def _find_mismatches(info: Mapping[str, Any], rows: Mapping[str, int], sizes: Mapping[str, int], schema: pa.Schema) -> Iterator[Problem]:
    """Yield how a version differs from what its run record says."""
    held, found = info[HOLDS], describe_state(rows, sizes, schema)
    if held.get("columns") != found["columns"]:
        yield Problem("its columns are not those of its run record", is_mendable=False)
    if any(held.get(name) != found[name] for name in ("parts", "rows", "digest")):
        counts = f"{found['rows']:,} rows in {found['parts']:,} parts, its run record {held.get('rows', 0):,} in {held.get('parts', 0):,}"
        yield Problem(f"the log lists other parts than its run record ({counts})", is_mendable=True)


def find_problems(delta: "DeltaTable", files: Mapping[str, tuple[int, int]], info: Mapping[str, Any] | None) -> Iterator[Problem]:
    """Yield what another tool or damage changed in a version, as far as its log shows it."""
    protocol, mapping = delta.protocol(), delta.metadata().configuration.get("delta.columnMapping.mode", "none")
    unknown = sorted({*(protocol.reader_features or ())} - READER_FEATURES)
    if unknown or mapping != "none":
        what = f"it needs the Delta feature {', '.join(unknown) or 'columnMapping'}, which embedder does not read"
        yield Problem(what, is_mendable=False)
    if delta.metadata().partition_columns:
        yield Problem(f"it is partitioned by {', '.join(delta.metadata().partition_columns)}", is_mendable=False)
    if foreign := find_foreign(files):
        yield Problem(f"it holds {foreign[0]!r}, which embedder did not write", is_mendable=True)
        return
    rows, sizes = ({name: found[place] for name, found in files.items()} for place in (1, 0))
    if info is not None and HOLDS in info:
        yield from _find_mismatches(info, rows, sizes, pa.schema(delta.schema().to_arrow()))
        return
    for parts in group_by_task(PartNames.parse(rows)):
        if len(complete_parts(parts)) != len(parts):
            yield Problem(f"the parts of a task do not reach from row 0 to its end ({parts[0]})", is_mendable=True)
