"""Writes vectors and documents as one parquet file, once, and reads parts back from storage."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedder.core.columns import find_foreign
from embedder.core.errors import StorageError, TableDamagedError
from embedder.core.listing import Found
from embedder.core.quantization import Ranges
from embedder.core.retry import is_transient, one_line
from embedder.core.schema import DOCUMENTS, LEADING, QUARANTINE, VECTORS, table_schema
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location, Store, map_threads
from embedder.core.units import Part, PartName, Stats
from embedder.table.checksums import checksum_of, compute_checksum, describe_pages
from embedder.table.vectors import Codes, quantization_of, vector_column

QUARANTINE_FOLDER = "_quarantine"
FOOTER_KEY = b"embedder"
"""Footer key of a part's spec and stats, so that a stray file still names its space."""

ROW_GROUP_ROWS = 16_384
"""About 25 MiB of 384-dim vectors: large enough to scan fast, small enough to skip."""

REPAIR = "run jobs.maintain with --check --deep --repair, then the job that made the table"

LISTED_PARTS = 500
"""Above this count, one listing of the folder is cheaper than a request for each part."""

_VECTOR_LEAF = "embedding.list.element"


def assemble_rows(documents: pa.Table, chunks: pa.Table, codes_NX: Codes, store_text: bool) -> pa.Table:
    """DOCUMENTS, CHUNKS (token_ids not needed) and the codes of one vector a chunk → the table's rows, in the order of the chunks."""
    # without the text: each chunk of a long document would take a copy of all of it
    rows = documents.drop_columns(["text"]).take(chunks["document"])
    columns: dict[str, Any] = {"doc_id": rows["doc_id"]}
    columns |= {name: chunks[name] for name in LEADING.names[1:]}
    if store_text:
        columns["text"] = slice_texts(documents["text"], chunks)
    metadata = pa.schema([field for field in documents.schema if field.name not in DOCUMENTS.names])
    columns |= {name: rows[name] for name in ("content_hash", "shard", "row", *metadata.names)}
    columns["embedding"] = vector_column(codes_NX)
    return pa.table(columns).cast(table_schema(metadata, store_text, quantization_of(codes_NX)))


def slice_texts(texts: pa.ChunkedArray, chunks: pa.Table) -> pa.ChunkedArray:
    """Return each chunk's slice of its document's text, by code points; `document` is a text's position."""
    if pc.max(chunks["num_chunks"]).as_py() in (None, 1) and not pc.any(chunks["truncated"]).as_py():
        return texts.take(chunks["document"])
    documents, spans = texts.to_pylist(), zip(*(chunks[name].to_pylist() for name in ("document", "start_char", "end_char")), strict=True)
    return pa.chunked_array([pa.array([documents[document][start:end] for document, start, end in spans], pa.string())])


def write_part(rows: pa.Table, quarantined: pa.Table, name: PartName, footer: dict[str, Any], table: Location) -> Part:
    """Write the quarantine file, then the part, each once; if another run was first, describe the part that is there.

    This order guarantees that a part on storage has its quarantine file.
    """
    rejects = encode_parquet(quarantined.select(QUARANTINE.names), {}) if quarantined.num_rows else b""
    rejects_file, file = quarantine_file(table, str(name)), part_file(table, str(name))
    if rejects and not rejects_file.write_once(rejects) and file.info() is None:
        # left by a worker that died before its part; the API or the encoder may have refused other documents since
        rejects_file.remove()
        rejects_file.write_once(rejects)
    data = encode_parquet(rows, {**footer, "name": str(name)})
    is_ours = file.write_once(data)
    ours = Part(str(name), rows.num_rows, len(data), Stats(**footer["stats"]), len(rejects), checksum_of(data))
    part = ours if is_ours else read_part(str(name), table)
    if not (part.stats.quarantined or (is_ours and rejects)):
        rejects_file.remove()  # left by a worker that rejected a document which was embedded since
    return part


def encode_parquet(rows: pa.Table, footer: dict[str, Any]) -> bytes:
    """Return a table as the bytes of one parquet file."""
    return encode_batches([rows], rows.schema, footer)


def encode_batches(tables: Iterable[pa.Table], schema: pa.Schema, footer: dict[str, Any]) -> bytes:
    """Return zstd parquet: byte-stream-split for vectors (their exponents compress), dictionaries for repeated strings.

    Holds the encoded file and one row group in memory, however many tables there are.
    """
    marked = schema.with_metadata({FOOTER_KEY: json.dumps(footer).encode()} if footer else None)
    has_floats = "embedding" in schema.names and schema.field("embedding").type.equals(VECTORS["none"])
    repeated = [field.name for field in schema if pa.types.is_string(field.type) and field.name not in ("doc_id", "text", "content_hash")]
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        marked,
        compression="zstd",
        use_dictionary=repeated,
        column_encoding={_VECTOR_LEAF: "BYTE_STREAM_SPLIT"} if has_floats else None,
        write_page_index=True,
        write_page_checksum=True,
    ) as writer:
        for group in _split_row_groups(tables, schema):
            writer.write_table(group.replace_schema_metadata(marked.metadata), row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata(describe_pages(sink))
    return sink.getvalue()


def _split_row_groups(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield full row groups and the rest; one empty group if there are no rows."""
    held, written = schema.empty_table(), 0
    for table in tables:
        held = pa.concat_tables([held, table.replace_schema_metadata(schema.metadata)])
        while held.num_rows > ROW_GROUP_ROWS:
            yield held.slice(0, ROW_GROUP_ROWS)
            held, written = held.slice(ROW_GROUP_ROWS), written + ROW_GROUP_ROWS
    if held.num_rows or not written:
        yield held


def part_file(table: Location, name: str) -> Store:
    """Return the file of a part."""
    return table.child(name).open()


def quarantine_file(table: Location, name: str) -> Store:
    """Return the file of a part's quarantined records."""
    return table.child(f"{QUARANTINE_FOLDER}/{name}").open()


def list_by_name(folder: Location) -> dict[str, Found]:
    """List the files directly in a folder, by file name."""
    return {found.uri.rsplit("/", 1)[-1]: found for found in folder.open().list_folder()}


def list_parts(table: Location) -> dict[str, int]:
    """List the parts on storage, committed or not; return their sizes by name."""
    sizes = table.open().list_sizes()
    for name in find_foreign(sizes):
        del sizes[name]
    return sizes


def check_stored(sizes: Mapping[str, int], stored: Mapping[str, int], uri: str) -> None:
    """Raise TableDamagedError if a committed part is gone from a listing of the folder, or has another size than in the log."""
    for name, size in sizes.items():
        found = stored.get(name)
        if found != size:
            what = "not on storage" if found is None else f"{found:,} bytes on storage, {size:,} in the log"
            raise TableDamagedError(f"{uri}: part {name}: {what}; {REPAIR}")


def group_by_task(names: Iterable[PartName]) -> list[list[PartName]]:
    """Return the parts of each task, in order of version and rows."""
    ordered = sorted(names, key=lambda name: (name.key, name.version, name.first_row, name.stop_row))
    return [list(group) for _, group in groupby(ordered, key=lambda name: name.key)]


def read_part(name: str, table: Location) -> Part:
    """Read a part's description and its checksum from its footer."""
    store = part_file(table, name)
    found = store.info()
    if found is None:
        raise StorageError(f"{store.uri}: the part is gone; run again to write it again")
    # opened once: a run that resumes does this for each of its finished parts
    with explain_damage(store.uri), store.open_input(narrow=True) as file:
        metadata = open_pages(file, store.uri).metadata
        stats = Stats(**parse_footer(metadata, store.uri)["stats"])
        checksum = compute_checksum(file, trusts_pages=True)
    quarantine = quarantine_file(table, name).info() if stats.quarantined else None
    return Part(name, metadata.num_rows, found.size_bytes, stats, quarantine.size_bytes if quarantine else 0, checksum)


def find_missing(names: Sequence[str], table: Location) -> list[str]:
    """Return the parts that are not on storage, such as leftovers that a run adopted while a vacuum deleted them."""
    if len(names) > LISTED_PARTS:
        stored = table.open().list_sizes()
        return [name for name in names if name not in stored]
    infos = map_threads(lambda name: part_file(table, name).info(), list(names))
    return [name for name, found in zip(names, infos, strict=True) if found is None]


def check_bytes(store: Store, checksum: str | None) -> None:
    """Raise TableDamagedError if a file does not have this checksum; None, of a part that an earlier embedder wrote, is any."""
    if checksum is not None and read_checksum(store) != checksum:
        raise TableDamagedError(f"{store.uri}: its bytes are not those that were written (checksum); {REPAIR}")


def read_checksum(store: Store) -> str:
    """Read a file to its end and return its checksum; see `compute_checksum`."""
    with explain_damage(store.uri), store.open_input() as file:
        return compute_checksum(file)


@contextmanager
def explain_damage(uri: str) -> Iterator[None]:
    """Raise TableDamagedError with the file's name and the remedy if a file of a table is damaged or gone; leave an outage as it is."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, StorageError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if isinstance(cause, FileNotFoundError):
            raise TableDamagedError(f"{uri}: not on storage; open the table again if a vacuum ran meanwhile, else {REPAIR}") from error
        is_outage = isinstance(cause, OSError) and (cause.errno is not None or is_transient(cause))
        if is_outage or (isinstance(error, StorageError) and not isinstance(cause, OSError)):
            raise
        raise TableDamagedError(f"{uri}: damaged, or not the file that was written ({one_line(cause or error)}); {REPAIR}") from error


def why_damaged(error: StorageError) -> str:
    """Return the reader's words for a file that cannot be read."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return one_line(cause)


@contextmanager
def open_parquet(store: Store, narrow: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; each page that is read is compared with its checksum. TableDamagedError if the file is damaged or gone.

    Parts of earlier versions have no checksums of pages.
    """
    with explain_damage(store.uri), store.open_input(narrow) as source:
        yield open_pages(source, store.uri)


def open_pages(source: IO[bytes], uri: str) -> pq.ParquetFile:
    """Open the file at this uri; TableDamagedError if another part lies there. Parts of earlier versions do not hold their name."""
    file = pq.ParquetFile(source, page_checksum_verification=True)
    check_name(file.metadata, uri)
    return file


def check_name(metadata: pq.FileMetaData, uri: str) -> None:
    """Raise TableDamagedError if a part is not the one that its file is named for."""
    footer = (metadata.metadata or {}).get(FOOTER_KEY)
    name = uri.rsplit("/", 1)[-1]
    if footer is not None and (held := json.loads(footer).get("name", name)) != name:
        raise TableDamagedError(
            f"{uri}: holds part {held}; run jobs.maintain with --check --deep --repair, then the job that made the table"
        )


def read_metadata(store: Store) -> pq.FileMetaData:
    """Read the footer of a parquet file."""
    with open_parquet(store) as file:
        return file.metadata


def read_footer(store: Store) -> tuple[int, dict[str, Any]]:
    """Read a part's number of rows, and its spec and stats."""
    metadata = read_metadata(store)
    return metadata.num_rows, parse_footer(metadata, store.uri)


def parse_footer(metadata: pq.FileMetaData, uri: str) -> dict[str, Any]:
    """Return a part's spec and stats; TableDamagedError if the footer has none, or they are damaged."""
    with explain_damage(uri):
        footer = json.loads((metadata.metadata or {}).get(FOOTER_KEY, b"{}"))
    if not isinstance(footer, dict) or "stats" not in footer:
        key = FOOTER_KEY.decode()
        raise TableDamagedError(f"{uri}: not a part of embedder (no {key!r} in its footer); move it out of the table's folder")
    known = isinstance(footer["stats"], dict) and set(footer["stats"]) <= set(Stats.__slots__) and "space_id" in footer
    if not known:
        raise TableDamagedError(f"{uri}: its footer is damaged, or of a newer embedder; run jobs.maintain with --check --deep")
    return footer


def read_batches(store: Store, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield a file's rows in tables of at most ROW_GROUP_ROWS rows, none of them empty."""
    with explain_damage(store.uri), store.open_input(narrow=columns is not None) as source:
        yield from split_batches(open_pages(source, store.uri), columns)


def split_batches(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of an open file in tables of at most ROW_GROUP_ROWS rows."""
    for batch in file.iter_batches(ROW_GROUP_ROWS, columns=columns and list(columns)):
        yield pa.Table.from_batches([batch])


def footer_of(spec: EmbeddingSpec, stats: Stats, ranges: Ranges | None = None) -> dict[str, Any]:
    """Return a part's footer: enough to read the file without the table."""
    footer = {"space_id": spec.space_id, "spec": spec.model_dump(), "stats": stats.record()}
    return footer | ({"ranges": ranges.record()} if ranges else {})
