"""Settings of a Delta table that is read or written."""

from typing import Annotated

from pydantic import Field

from embedder.config.section import Located, NonEmpty, Positive, TableAddress
from embedder.core.spec import Quantization


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
