"""Settings of the documents: their location, format and columns."""

from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from embedder.config.section import Address, Located, NonEmpty
from embedder.core.schema import check_metadata_names, name_columns

DatabaseFile = Literal["sqlite", "duckdb"]
Table = Literal["delta", "iceberg", "lance"]
Format = Literal["auto", "parquet", "orc", "arrow", "avro", DatabaseFile, "jsonl", "csv", "tsv", "warc", "text", Table, "postgres"]

TABLES: tuple[Format, ...] = get_args(Table)
DATABASE_FILES: tuple[Format, ...] = get_args(DatabaseFile)
POSTGRES = ("postgresql://", "postgres://")


class SourceConfig(Located):
    """The documents' location, and how a record is read."""

    uri: Address
    """Location, glob or file: a local path, s3://, gs://, az://, hf://datasets/ORG/NAME[@REVISION]/ or hf://buckets/ORG/NAME/; for
    iceberg also a metadata.json, or catalog.namespace.table; postgresql://HOST/DATABASE, as libpq has it, for source.table."""
    format: Format = "auto"
    """auto goes by suffix: .parquet .orc .arrow .feather .avro .sqlite .sqlite3 .duckdb, or .jsonl .ndjson .json .csv .tsv .warc .wet .txt,
    these also .gz .zst .bz2 .xz; in a table, its format. avro, duckdb, warc and postgres need the extra of that name."""
    table: NonEmpty | None = None
    """Table or view of a database, such as public.articles; default, in files of SQLite and DuckDB: the only table."""
    key_column: NonEmpty | None = None
    """Unique column that orders the rows of that table, in PostgreSQL of integers, text or UUIDs and with an index; default: the primary
    key, in files of SQLite and DuckDB the order of storage."""
    watermark_column: NonEmpty | None = None
    """Column of a PostgreSQL table that every edit of a row changes, such as updated_at; default: all columns in use are compared."""
    version: Annotated[int, Field(ge=0)] | str | None = None
    """Version of a table (Iceberg: id of a snapshot), or an ISO 8601 time for the version that was the newest then; default: the newest."""
    filter: NonEmpty | None = None
    """Records to embed, such as "lang = 'de' and year >= 2020", with columns of the source; rows of others leave the table."""
    text_columns: tuple[NonEmpty, ...] = ("text",)
    """Keys or columns, joined by one space; meta.url is a nested key. Not used by format text."""
    id_column: NonEmpty | None = None
    """Column that names a document, unique within its shard; default: shard uri + # + row."""
    metadata_columns: dict[str, NonEmpty] = Field(default_factory=dict)
    """Columns stored beside the vectors with their own types: a list of keys, or a mapping of new names to keys."""
    metadata_types: dict[str, NonEmpty] = Field(default_factory=dict)
    """Arrow type by metadata name (string, int64, double, bool, timestamp, list<string>); default: the shards' own."""
    rows_per_unit: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """Most documents in a unit of work, and so in a part of the table: seconds of the encoder."""
    max_record_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 64 << 20
    """Bytes of a record, decompressed; a longer one is quarantined as too_large. A reader holds 4 times this, or 30 of bare brackets."""

    @field_validator("version", mode="before")
    @classmethod
    def _a_number_or_a_time(cls, value: Any) -> Any:
        """Return a number, or a time in ISO 8601 with its zone; without one, it is UTC."""
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            return int(value)
        if isinstance(value, date) and not isinstance(value, datetime):
            value = value.isoformat()
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError("give the number of a version, or a time in ISO 8601, such as 2026-01-31T12:00:00Z") from error
        if not isinstance(moment, datetime):
            return value
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if moment > datetime.now(UTC):
            raise ValueError("this time has not come yet; leave it out to read the newest version")
        return moment.isoformat()

    @field_validator("text_columns", mode="before")
    @classmethod
    def _one_column_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("text_columns")
    @classmethod
    def _at_least_one_column(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one text column is needed")
        return value

    @field_validator("metadata_columns", mode="before")
    @classmethod
    def _a_list_keeps_the_names(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value
        if not all(isinstance(name, str) for name in names):
            raise ValueError("each metadata column is a key, such as title or meta.url")
        return name_columns(names)

    @field_validator("metadata_columns")
    @classmethod
    def _no_reserved_names(cls, value: dict[str, str]) -> dict[str, str]:
        check_metadata_names(value)
        return value

    @property
    def is_postgres(self) -> bool:
        """Whether the source is a table of a PostgreSQL database."""
        return self.uri.startswith(POSTGRES)

    @model_validator(mode="after")
    def _a_database_has_its_own_settings(self) -> Self:
        own = [name for name in ("table", "key_column", "watermark_column") if getattr(self, name) is not None]
        if not self.is_postgres and ("watermark_column" in own or self.format == "postgres"):
            setting = "watermark_column" if "watermark_column" in own else "format=postgres"
            raise ValueError(f"{setting} is for a source at postgresql://HOST/DATABASE, not for uri {self.uri!r}")
        if not self.is_postgres and own and self.format not in ("auto", *DATABASE_FILES):
            raise ValueError(f"{own[0]} is for databases ({', '.join(DATABASE_FILES)}, postgresql://), not for format {self.format}")
        if self.is_postgres and self.format not in ("auto", "postgres"):
            raise ValueError(f"format {self.format} is not for a database; leave it out")
        if self.is_postgres and self.table is None:
            raise ValueError("a database needs table, such as public.articles")
        if self.is_postgres and (self.version is not None or self.storage_options):
            raise ValueError("a database has neither version nor storage_options; leave them out")
        return self

    @model_validator(mode="after")
    def _versions_are_of_tables(self) -> Self:
        if self.version is not None and self.format not in ("auto", *TABLES):
            raise ValueError(f"version is for tables ({', '.join(TABLES)}), not for format {self.format}")
        return self

    @model_validator(mode="after")
    def _types_are_of_metadata(self) -> Self:
        unknown = sorted(set(self.metadata_types) - set(self.metadata_columns))
        if unknown:
            raise ValueError(
                f"metadata_types names {', '.join(unknown)}, not among metadata_columns ({', '.join(self.metadata_columns) or 'none'})"
            )
        return self
