"""Settings of a load: the table and the store.

A store is one field of LoadConfig: its name is that of the module beside this one, and of the extra that installs its client.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from embedder.config.section import Located, NonEmpty, Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$")]
"""A name that every store accepts unquoted."""


class TableConfig(Located, Section):
    """The table to load."""

    uri: NonEmpty
    """Folder of a table made by jobs.embed: a local path, s3://, gs:// or az://."""
    version: Annotated[int, Field(ge=0)] | None = None
    """Version of the table; left out: the newest."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem. Credentials belong in the environment."""


class LanceConfig(Section):
    """LanceDB: a folder on local disk or an object store."""

    uri: NonEmpty
    """Folder of the database: a local path or s3://."""
    name: Name = "documents"
    """Table."""
    index: Literal["auto", "none", "ivf_hnsw_sq", "ivf_pq", "ivf_flat"] = "auto"
    """auto: ivf_hnsw_sq from 50,000 rows on; below, none, since a scan takes milliseconds."""
    storage_options: dict[str, str] = Field(default_factory=dict)
    """Passed to LanceDB, e.g. {endpoint: …}. Credentials belong in the environment."""


class PgvectorConfig(Section):
    """PostgreSQL with the extension pgvector, 0.8 or newer."""

    dsn: NonEmpty
    """Connection string, e.g. postgresql://me@host/database; the password belongs in PGPASSWORD or ~/.pgpass."""
    name: Name = "documents"
    """Table."""
    type: Literal["vector", "halfvec"] = "halfvec"
    """Type of float vectors: halfvec takes half the space and is indexed up to 4,000 dims; vector (float32) up to 2,000."""
    index: Literal["hnsw", "ivfflat", "none"] = "hnsw"
    m: Annotated[int, Field(ge=2, le=100)] = 16
    """Links per node of the HNSW graph."""
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 64
    """Candidates per link while building: more is slower and finds more."""
    ef_search: Annotated[int, Field(ge=1, le=1000)] = 100
    """Candidates per search, at least as many as are returned."""


class QdrantConfig(Section):
    """Qdrant: a server, or a folder in the client's local mode, for experiments."""

    url: NonEmpty | None = None
    """Server, e.g. http://localhost:6333; the key belongs in QDRANT_API_KEY."""
    path: NonEmpty | None = None
    """Folder of the local mode."""
    name: Name = "documents"
    """Collection."""
    datatype: Literal["float32", "float16"] = "float32"
    """Type of stored vectors."""
    m: Annotated[int, Field(ge=2, le=100)] = 16
    """Links per node of the HNSW graph."""
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 100
    """Candidates per link while building."""

    @model_validator(mode="after")
    def _one_place(self) -> "QdrantConfig":
        if (self.url is None) == (self.path is None):
            raise ValueError("set either url, of a server, or path, of a folder")
        return self


class MilvusConfig(Section):
    """Milvus: a server, or a file of Milvus Lite."""

    uri: NonEmpty
    """http://localhost:19530, or a file that ends in .db; the token belongs in MILVUS_TOKEN."""
    name: Name = "documents"
    """Collection."""
    index: Literal["auto", "hnsw", "ivf_flat", "flat"] = "auto"
    """auto: chosen by Milvus."""
    m: Annotated[int, Field(ge=2, le=100)] = 16
    """Links per node of the HNSW graph."""
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 200
    """Candidates per link while building."""


class DuckdbConfig(Section):
    """DuckDB: one file."""

    path: NonEmpty
    """The database file."""
    name: Name = "documents"
    """Table."""
    index: Literal["none", "hnsw"] = "none"
    """none: exact search by a scan. hnsw needs the extension vss, whose files DuckDB calls experimental."""


class LoadConfig(Section):
    """One load: make one store hold the rows of one table."""

    table: TableConfig
    lance: LanceConfig | None = None
    """LanceDB."""
    pgvector: PgvectorConfig | None = None
    """PostgreSQL with pgvector."""
    qdrant: QdrantConfig | None = None
    """Qdrant."""
    milvus: MilvusConfig | None = None
    """Milvus."""
    duckdb: DuckdbConfig | None = None
    """DuckDB."""

    @model_validator(mode="after")
    def _one_store(self) -> "LoadConfig":
        if len(self.stores) != 1:
            raise ValueError(f"set one store; found {', '.join(self.stores) or 'none'} of {', '.join(STORE_SECTIONS)}")
        return self

    @property
    def stores(self) -> list[str]:
        """Names of the stores that are set."""
        return [name for name in STORE_SECTIONS if getattr(self, name) is not None]


STORE_SECTIONS = tuple(name for name in LoadConfig.model_fields if name != "table")
