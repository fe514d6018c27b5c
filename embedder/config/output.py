"""Settings of a Delta table that is read or written."""

from typing import Annotated, Any

from pydantic import Field

from embedder.config.section import Located, NonEmpty, Section, TableAddress
from embedder.core.spec import Quantization


class TableConfig(Located, Section):
    """A table that is read."""

    uri: NonEmpty
    """Folder of the Delta table: a local path, s3://, gs:// or az://."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem, e.g. {endpoint_url: …}. Credentials belong in the environment."""


class CutTableConfig(Located, Section):
    """A table made from another one's vectors."""

    uri: TableAddress
    """Folder of the Delta table: a local path, s3://, gs:// or az://."""
    dim: Annotated[int, Field(ge=1)] | None = None
    """Leading components kept; left out: all."""
    quantization: Quantization = "none"
    """none, int8 (needs calibration) or binary."""
    rotate: bool = False
    """Turn whole vectors onto the principal axes that calibration holds, before the cut; those of a turned parent are so already."""
    calibration: NonEmpty | None = None
    """Folder of an artifact of jobs.calibrate that holds the axes, and the ranges of int8."""
    replace: bool = False
    """Swap everything in one commit, although the table holds another spec."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem, e.g. {endpoint_url: …}. Credentials belong in the environment."""


class OutputConfig(Located, Section):
    """Where the table is and what it keeps."""

    uri: TableAddress
    """Folder of the Delta table: a local path, s3://, gs:// or az://."""
    store_text: bool = True
    """Keep the text of each chunk beside its vector."""
    replace: bool = False
    """Where the table holds another spec, embed everything and swap it in one commit; its cuts follow."""
    cuts: tuple[CutTableConfig, ...] = ()
    """Tables brought in step after this one, from its vectors: [{uri: …, dim: 128, quantization: binary}]."""
    max_removed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A run after which more than this fraction of the rows would be gone is refused at its commit; 1 allows any, and an empty source."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem, e.g. {endpoint_url: …}. Credentials belong in the environment."""
