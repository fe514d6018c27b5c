"""The Arrow tables that pass between stages. A stage is a function from one of these to the next."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import pyarrow as pa

from embedder.core.spec import Quantization

DOCUMENTS = pa.schema({"doc_id": pa.string(), "text": pa.string(), "content_hash": pa.string(), "shard": pa.string(), "row": pa.int64()})
"""source → text: one valid record a row, in source order; metadata columns follow with their own types."""

QUARANTINE = pa.schema({"shard": pa.string(), "row": pa.int64(), "doc_id": pa.string(), "reason": pa.string(), "excerpt": pa.string()})
"""source → output: records that could not be embedded, each with a `Reason` and an excerpt."""

VECTORS: dict[Quantization, pa.DataType] = {
    "none": pa.list_(pa.field("element", pa.float32())),
    "int8": pa.list_(pa.field("element", pa.int8())),
    "binary": pa.binary(),
}
"""The vector column's type by quantization. Not a fixed-size list: Polars refuses a Delta table whose files hold one. Bits are
bytes: Delta has no unsigned integers."""

LEADING = pa.schema(
    {"doc_id": pa.string(), **{name: pa.int32() for name in ("chunk", "num_chunks", "start_char", "end_char", "num_tokens")}}
)
RESERVED = frozenset({*LEADING.names, "text", "content_hash", "shard", "row", "embedding"})
"""Names of the table's own columns, which metadata columns may not take."""


def name_columns(keys: Sequence[str]) -> dict[str, str]:
    """Return column names for metadata keys, dots as underscores; ValueError if two keys get one column."""
    named = {key.replace(".", "_"): key for key in keys}
    lost = sorted(set(keys) - set(named.values()))
    if lost:
        name = lost[0].replace(".", "_")
        raise ValueError(
            f"{lost[0]} and {named[name]} would both be column {name}; name them apart, e.g. {{{name}: {named[name]}, {name}_2: {lost[0]}}}"
        )
    return named


def check_metadata_names(columns: Mapping[str, str]) -> None:
    """Raise ValueError for a name of the table's own columns, or two names that differ only in case, which are one to Delta."""
    taken = sorted(name for name in columns if name.lower() in RESERVED)
    if taken:
        raise ValueError(
            f"{', '.join(taken)} is a column of the table itself; give it another name, e.g. {{source_{taken[0]}: {columns[taken[0]]}}}"
        )
    first: dict[str, str] = {}
    for name in columns:
        if first.setdefault(name.lower(), name) != name:
            raise ValueError(f"{first[name.lower()]} and {name} are one column to a Delta table; name them apart by more than case")


class Reason(StrEnum):
    """Why a record is quarantined and not embedded."""

    NULL_TEXT = "null_text"
    EMPTY_TEXT = "empty_text"
    NOT_TEXT = "not_text"
    UNDECODABLE = "undecodable"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    MISSING_ID = "missing_id"
    DUPLICATE_ID = "duplicate_id"
    METADATA_TYPE = "metadata_type"
    NO_TOKENS = "no_tokens"
    KILLS_ENCODER = "kills_encoder"
    NOT_FINITE = "not_finite"
    REFUSED_BY_API = "refused_by_api"


def table_schema(metadata: pa.Schema, store_text: bool, quantization: Quantization = "none") -> pa.Schema:
    """Return the columns of the output table: a chunk a row, metadata with its own types, the vector last."""
    own = {"content_hash": pa.string(), "shard": pa.string(), "row": pa.int64()}
    text = {"text": pa.string()} if store_text else {}
    return pa.schema([*LEADING, *pa.schema(text | own), *metadata, pa.field("embedding", VECTORS[quantization])])
