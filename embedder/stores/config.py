"""The settings of a load: which table, and which store it goes to."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from embedder.config.section import Located, NonEmpty, Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$")]
"""A name that every store takes as it stands."""


class TableConfig(Located, Section):
    """The table that is loaded."""

    uri: NonEmpty
    """Folder of the table that jobs.embed made: a local path, s3://, gs:// or az://."""
    version: Annotated[int, Field(ge=0)] | None = None
    """Left out: the newest."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the fsspec filesystem. Credentials belong in the environment."""


class LanceConfig(Section):
    """LanceDB: a folder, local or on an object store."""

    uri: NonEmpty
    """Folder of the database: a local path or s3://."""
    name: Name = "documents"
    """Table."""
    index: Literal["auto", "none", "ivf_hnsw_sq", "ivf_pq", "ivf_flat"] = "auto"
    """auto: ivf_hnsw_sq from 50,000 rows on, none below, where a scan takes milliseconds."""
    storage_options: dict[str, str] = Field(default_factory=dict)
    """Passed to LanceDB, e.g. {endpoint: …}. Credentials belong in the environment."""


class PgvectorConfig(Section):
    """PostgreSQL with the extension pgvector, 0.8 or newer."""

    dsn: NonEmpty
    """Connection string, e.g. postgresql://me@host/database; the password belongs in PGPASSWORD or ~/.pgpass."""
    name: Name = "documents"
    """Table."""
    type: Literal["vector", "halfvec"] = "halfvec"
    """Of float vectors: halfvec takes half the space and is indexed up to 4,000 dims, vector (float32) up to 2,000."""
    index: Literal["hnsw", "ivfflat", "none"] = "hnsw"
    m: Annotated[int, Field(ge=2, le=100)] = 16
    """Links a node of the HNSW graph."""
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 64
    """Candidates looked at for each link: more is slower to build and finds more."""
    ef_search: Annotated[int, Field(ge=1, le=1000)] = 100
    """Candidates of a search, at least as many as it shows."""


class QdrantConfig(Section):
    """Qdrant: a server, or a folder in its client's local mode, which is for trying out."""

    url: NonEmpty | None = None
    """Of a server, e.g. http://localhost:6333; the key belongs in QDRANT_API_KEY."""
    path: NonEmpty | None = None
    """Folder of the local mode."""
    name: Name = "documents"
    """Collection."""
    datatype: Literal["float32", "float16"] = "float32"
    """Of stored vectors."""
    m: Annotated[int, Field(ge=2, le=100)] = 16
    """Links a node of the HNSW graph."""
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 100
    """Candidates looked at for each link."""

    @model_validator(mode="after")
    def _one_place(self) -> "QdrantConfig":
        if (self.url is None) == (self.path is None):
            raise ValueError("set either url, of a server, or path, of a folder")
        return self


class MilvusConfig(Section):
    """Milvus: a server, or a file of Milvus Lite."""

    uri: NonEmpty
    """http://localhost:19530, or the path of a file ending in .db; the token belongs in MILVUS_TOKEN."""
    name: Name = "documents"
    """Collection."""
    index: Literal["auto", "hnsw", "ivf_flat", "flat"] = "auto"
    """auto: as Milvus chooses."""
    m: Annotated[int, Field(ge=2, le=100)] = 16
    """Links a node of the HNSW graph."""
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 200
    """Candidates looked at for each link."""


class DuckdbConfig(Section):
    """DuckDB: one file."""

    path: NonEmpty
    """The database file."""
    name: Name = "documents"
    """Table."""
    index: Literal["none", "hnsw"] = "none"
    """none: every search scans all vectors, exactly. hnsw needs the extension vss, whose files DuckDB calls experimental."""


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
            raise ValueError(f"one load goes to one store; found {', '.join(self.stores) or 'none'} of {', '.join(STORE_SECTIONS)}")
        return self

    @property
    def stores(self) -> list[str]:
        """The sections of stores that are set."""
        return [name for name in STORE_SECTIONS if getattr(self, name) is not None]


STORE_SECTIONS = ("lance", "pgvector", "qdrant", "milvus", "duckdb")
