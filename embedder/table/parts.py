"""Vectors and documents become one parquet file, written once; a file on storage becomes a Part again."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedder.core.errors import StorageError
from embedder.core.quantization import Ranges
from embedder.core.schema import DOCUMENTS, LEADING, QUARANTINE, VECTORS, table_schema
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location, Store, map_threads
from embedder.core.units import Part, PartName, Stats
from embedder.table.vectors import Codes, quantization_of, vector_column

QUARANTINE_FOLDER = "_quarantine"
FOOTER_KEY = b"embedder"
"""Where a part's footer keeps its spec and stats: a file found alone still says which space it is in."""

ROW_GROUP_ROWS = 16_384
"""About 25 MiB of 384-dim vectors: large enough to scan fast, small enough to skip."""

LISTED_PARTS = 500
"""Above, one listing of the folder is cheaper than a look at each part."""

_VECTOR_LEAF = "embedding.list.element"


def assemble_rows(documents: pa.Table, chunks: pa.Table, codes_NX: Codes, store_text: bool) -> pa.Table:
    """DOCUMENTS, CHUNKS (token_ids not needed) and the codes of one vector a chunk → the table's rows, in the order of the chunks."""
    # not the text: of a long document each of its many chunks would take a copy of all of it
    rows = documents.drop_columns(["text"]).take(chunks["document"])
    columns: dict[str, Any] = {"doc_id": rows["doc_id"]}
    columns |= {name: chunks[name] for name in LEADING.names[1:]}
    if store_text:
        columns["text"] = slice_texts(documents["text"], chunks)
    columns |= {name: rows[name] for name in ("content_hash", "shard", "row")}
    metadata = pa.schema([field for field in documents.schema if field.name not in DOCUMENTS.names])
    columns |= {name: rows[name] for name in metadata.names}
    columns["embedding"] = vector_column(codes_NX)
    return pa.table(columns).cast(table_schema(metadata, store_text, quantization_of(codes_NX)))


def slice_texts(texts: pa.ChunkedArray, chunks: pa.Table) -> pa.ChunkedArray:
    """Cut each chunk's text out of its document's, by code points; `document` is a text's position."""
    if pc.max(chunks["num_chunks"]).as_py() in (None, 1) and not pc.any(chunks["truncated"]).as_py():
        return texts.take(chunks["document"])
    documents, spans = texts.to_pylist(), zip(*(chunks[name].to_pylist() for name in ("document", "start_char", "end_char")), strict=True)
    return pa.chunked_array([pa.array([documents[document][start:end] for document, start, end in spans], pa.string())])


def write_part(rows: pa.Table, quarantined: pa.Table, name: PartName, footer: dict[str, Any], folder: "Location") -> Part:
    """Put the quarantine file, then the part, each once; if another run was first, its part stands and is described.

    The quarantine file comes first, so that a part on storage always has its namesake.
    """
    rejects = encode_parquet(quarantined.select(QUARANTINE.names), {}) if quarantined.num_rows else b""
    if rejects:
        quarantine_file(folder, str(name)).write_once(rejects)
    data = encode_parquet(rows, footer)
    if not part_file(folder, str(name)).write_once(data):
        return read_part(str(name), folder)
    stats = Stats(**footer["stats"])
    return Part(str(name), rows.num_rows, len(data), stats, len(rejects))


def encode_parquet(table: pa.Table, footer: dict[str, Any]) -> bytes:
    """Encode a table as one parquet file."""
    return encode_batches([table], table.schema, footer)


def encode_batches(tables: Iterable[pa.Table], schema: pa.Schema, footer: dict[str, Any]) -> bytes:
    """Encode zstd parquet: byte-stream-split for vectors (their exponents compress), dictionaries for repeated strings.

    Holds the encoded file and one row group, however many tables come.
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
    ) as writer:
        for group in _cut_groups(tables, schema):
            writer.write_table(group.replace_schema_metadata(marked.metadata), row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue()


def _cut_groups(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Join and cut tables to full row groups; a file without rows has one without rows."""
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


def list_parts(table: Location) -> list[PartName]:
    """List the parts on storage, committed or not."""
    names = (PartName.parse(found.uri.rsplit("/", 1)[-1]) for found in table.open().list_folder())
    return [name for name in names if name is not None]


def read_part(name: str, folder: Location) -> Part:
    """Describe a part on storage by its footer."""
    store = part_file(folder, name)
    found = store.info()
    if found is None:
        raise StorageError(f"{store.uri}: the part is gone; run again to write it anew")
    num_rows, footer = read_footer(store)
    stats = Stats(**footer["stats"])
    quarantine = quarantine_file(folder, name).info() if stats.quarantined else None
    return Part(name, num_rows, found.size_bytes, stats, quarantine.size_bytes if quarantine else 0)


def find_missing(names: Sequence[str], folder: Location) -> list[str]:
    """Find parts that are not on storage: such as old leftovers that a run took up while a vacuum deleted them."""
    if len(names) > LISTED_PARTS:
        stored = set(map(str, list_parts(folder)))
        return [name for name in names if name not in stored]
    infos = map_threads(lambda name: part_file(folder, name).info(), list(names))
    return [name for name, found in zip(names, infos, strict=True) if found is None]


def read_footer(store: Store) -> tuple[int, dict[str, Any]]:
    """Read a part's rows, and what it says of itself."""
    with store.open_input() as file:
        metadata = pq.read_metadata(file)
    footer: dict[str, Any] = json.loads((metadata.metadata or {}).get(FOOTER_KEY, b"{}"))
    if "stats" not in footer:
        raise StorageError(
            f"{store.uri}: not a part of embedder (no {FOOTER_KEY.decode()!r} in its footer); move it out of the table's folder"
        )
    return metadata.num_rows, footer


def read_batches(store: Store, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read a file in tables of at most ROW_GROUP_ROWS rows, none of them empty."""
    with store.open_input(narrow=columns is not None) as source:
        for batch in pq.ParquetFile(source).iter_batches(ROW_GROUP_ROWS, columns=columns and list(columns)):
            yield pa.Table.from_batches([batch])


def read_schema(store: Store) -> pa.Schema:
    """Read a file's columns."""
    with store.open_input() as file:
        return pq.read_schema(file).remove_metadata()


def count_rows(store: Store) -> int:
    """Read the number of rows from a parquet footer."""
    with store.open_input() as file:
        return int(pq.read_metadata(file).num_rows)


def footer_of(spec: EmbeddingSpec, stats: Stats, ranges: Ranges | None = None) -> dict[str, Any]:
    """What a part says of itself: enough to read it where it is found alone."""
    footer = {"space_id": spec.space_id, "spec": spec.model_dump(), "stats": asdict(stats)}
    return footer | ({"ranges": ranges.record()} if ranges else {})
