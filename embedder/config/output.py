"""Settings of a Delta table that is read or written."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from embedder.config.section import Located, NonEmpty, Positive, TableAddress
from embedder.core.spec import Quantization

_EVERY = re.compile(r"(\d[\d,_]*) *(minutes?|hours?|rows|MB|GB)")
_UNITS: dict[str, tuple[Literal["seconds", "rows", "bytes"], int]] = {
    "minute": ("seconds", 60), "hour": ("seconds", 3600), "row": ("rows", 1), "MB": ("bytes", 10**6), "GB": ("bytes", 10**9)
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Every:
    """An amount of time, rows or bytes."""

    amount: int
    unit: Literal["seconds", "rows", "bytes"]


def parse_every(text: str) -> Every:
    """Parse `30 minutes`, `2 hours`, `1,000,000 rows`, `500 MB` or `20 GB`; ValueError for anything else, and for zero."""
    found = _EVERY.fullmatch(text.strip())
    count = int(re.sub(r"\D", "", found[1])) if found else 0
    if not found or not count:
        raise ValueError(f"{text!r}: is no amount; write 30 minutes, 2 hours, 1000000 rows, 500 MB or 20 GB, say")
    unit, size = _UNITS[found[2].removesuffix("s")]
    return Every(count * size, unit)


def _checked_every(text: str) -> str:
    parse_every(text)
    return text


class TableConfig(Located):
    """A table that is read."""

    uri: NonEmpty
    """Folder of the Delta table: a local path, s3://, gs:// or az://."""


class CutTableConfig(Located):
    """A table made from another one's vectors."""

    uri: TableAddress
    """Folder of the Delta table: a local path, s3://, gs:// or az://."""
    dim: Positive | None = None
    """Leading components kept; default: all."""
    quantization: Quantization = "none"
    """none, int8 (needs calibration) or binary."""
    rotate: bool = False
    """Rotate full vectors onto the principal axes in calibration before truncation; those of a rotated parent already are."""
    calibration: NonEmpty | None = None
    """Folder of a jobs.calibrate artifact with the axes and the int8 ranges."""
    replace: bool = False
    """If the table holds another spec, replace all of it in one commit."""


class OutputConfig(Located):
    """The table and its contents."""

    uri: TableAddress
    """Folder of the Delta table: a local path, s3://, gs:// or az://."""
    store_text: bool = True
    """Store the text of each chunk beside its vector."""
    replace: bool = False
    """If the table holds another spec, embed everything and replace it in one commit; its cuts follow."""
    cuts: tuple[CutTableConfig, ...] = ()
    """Tables updated after this one, from its vectors: [{uri: …, dim: 128, quantization: binary}]."""
    max_removed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Refuse to commit a run that would remove more than this fraction of the rows; 1 allows any, and an empty source."""
    publish_every: Annotated[NonEmpty, AfterValidator(_checked_every)] | None = None
    """Publish finished shards during the run, each time after 30 minutes, 1000000 rows or 20 GB, say; default: one commit at the end."""
