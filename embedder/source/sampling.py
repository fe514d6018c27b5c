"""A listing → a random sample of its documents, spread over shards by size, without reading the corpus."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, SourceError, StorageError
from embedder.core.schema import DOCUMENTS
from embedder.core.storage import Store
from embedder.core.units import Shard
from embedder.source.decompression import damage_explained
from embedder.source.documents import READERS
from embedder.source.formats.parquet import read_footer, slice_row_groups
from embedder.source.shards import Encoding, Listing, shard_format
from embedder.source.validation import CheckedRows, Reading, SeenIds, check_rows

MOST_SHARDS = 64
"""Shards a sample is first spread over, drawn by size; more are opened only where these hold too few documents."""
LEAST_READ_BYTES = 4 << 20
"""Read of each before reading ends early: small shards are read whole."""
CANDIDATES = 4
"""Documents read for each that is kept, so that neighbours in a shard are not all taken."""
NO_METADATA = pa.schema([])

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """Documents drawn at random, in order of shard and row, and what was read for them."""

    documents: pa.Table
    """schema.DOCUMENTS and the metadata."""
    records_read: int
    documents_read: int
    """Those of the records that can be embedded."""
    bytes_read: int
    """On storage, compressed as they are."""

    def estimate_documents(self, size_bytes: int) -> int:
        """Estimate how many documents that can be embedded so many bytes on storage hold."""
        return round(size_bytes * self.documents_read / self.bytes_read) if self.bytes_read else 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was read of one shard: documents in random order, and the cost of reading them."""

    documents: pa.Table
    records: int
    usable: int
    size_bytes: int


def sample_documents(source: SourceConfig, listing: Listing, num_documents: int, seed: int, metadata: pa.Schema = NO_METADATA) -> Sample:
    """Draw documents at random, or give all where there are no more; equal arguments give equal samples.

    Of a large shard that is not parquet only the start is looked at. A shard that cannot be read is passed over.
    """
    draw = np.random.default_rng(seed)
    ordered = _order_by_size(listing.shards, draw)
    first, others = ordered[:MOST_SHARDS], ordered[MOST_SHARDS:]
    total_bytes = max(sum(shard.size_bytes for shard in first), 1)
    quotas = [math.ceil(num_documents * shard.size_bytes / total_bytes) for shard in first]
    quotas += [math.ceil(num_documents / MOST_SHARDS)] * len(others)
    pieces: list[tuple[_Piece, int]] = []
    failure: SourceError | None = None
    for number, (shard, quota) in enumerate(zip(ordered, quotas, strict=True)):
        if number >= len(first) and sum(min(piece.documents.num_rows, share) for piece, share in pieces) >= num_documents:
            break
        try:
            pieces.append((_read_piece(shard, source, metadata, quota, draw), quota))
        except SourceError as error:
            failure = failure or error
            logger.warning("%s", error)
    if failure and not pieces:
        raise failure
    sample = Sample(
        _choose(pieces, num_documents, metadata, draw),
        sum(piece.records for piece, _ in pieces),
        sum(piece.usable for piece, _ in pieces),
        sum(piece.size_bytes for piece, _ in pieces),
    )
    if not sample.documents.num_rows:
        problem = (
            f"none of {sample.records_read} records read can be embedded; check text_columns"
            if sample.records_read
            else "no record is there"
        )
        raise ConfigError(f"source.uri={source.uri!r}: {problem}")
    return sample


def _order_by_size(shards: Sequence[Shard], draw: np.random.Generator) -> list[Shard]:
    """Shuffle, large ones likely first: in the order in which drawing without putting back, by size, would give them."""
    keys = draw.exponential(size=len(shards)) / np.maximum([shard.size_bytes for shard in shards], 1)
    return [shards[number] for number in np.argsort(keys)]


def _read_piece(shard: Shard, source: SourceConfig, metadata: pa.Schema, quota: int, draw: np.random.Generator) -> _Piece:
    """Read until there are candidates enough, and keep twice the quota, in random order: others may hold too few."""
    held: list[pa.Table] = []
    num_documents = records = size_bytes = 0
    encoding = shard_format(shard.uri, source.format)
    assert encoding is not None, shard
    for rows, size_bytes in _read_rows(shard, encoding, source, metadata, draw):
        held.append(rows.documents)
        num_documents, records = num_documents + rows.documents.num_rows, records + rows.num_rows
        if num_documents >= CANDIDATES * quota and size_bytes >= LEAST_READ_BYTES:
            break
    documents = pa.concat_tables([_schema(metadata).empty_table(), *held])
    return _Piece(documents.take(draw.permutation(num_documents)[: 2 * quota]), records, num_documents, size_bytes)


def _read_rows(
    shard: Shard, encoding: Encoding, source: SourceConfig, metadata: pa.Schema, draw: np.random.Generator
) -> Iterator[tuple[CheckedRows, int]]:
    """Give checked rows with the bytes on storage read so far: row groups in random order, any other format from its start."""
    read = READERS[encoding.format]
    try:
        narrow = encoding.format == "parquet"
        with Store(shard.uri, source.storage_options).open_input(narrow) as file, damage_explained(shard.uri):
            if encoding.format != "parquet":
                seen = SeenIds()
                reading = Reading(shard, encoding.compression, source, metadata)
                for rows in read(file, reading):
                    yield check_rows(rows, reading, seen), min(file.tell(), shard.size_bytes)
                return
            slices = slice_row_groups(read_footer(file)[1], shard.size_bytes, 1)
            for number, chosen in enumerate(draw.permutation(len(slices)), 1):
                start, stop, first_row = slices[chosen]
                reading = Reading(shard, None, source, metadata, (start, stop), first_row)
                for rows in read(file, reading):
                    yield check_rows(rows, reading, SeenIds()), shard.size_bytes * number // len(slices)
    except StorageError as error:
        raise SourceError(str(error)) from error


def _choose(pieces: Sequence[tuple[_Piece, int]], num_documents: int, metadata: pa.Schema, draw: np.random.Generator) -> pa.Table:
    """Take each shard's quota, then fill up from those that have more, and leave out at random what is too much."""
    quotas = [piece.documents.slice(0, quota) for piece, quota in pieces]
    spare = pa.concat_tables([_schema(metadata).empty_table(), *(piece.documents.slice(quota) for piece, quota in pieces)])
    chosen = pa.concat_tables([_schema(metadata).empty_table(), *quotas])
    chosen = chosen.take(draw.permutation(chosen.num_rows)[:num_documents])
    chosen = pa.concat_tables([chosen, spare.take(draw.permutation(spare.num_rows)[: num_documents - chosen.num_rows])])
    return chosen.sort_by([("shard", "ascending"), ("row", "ascending")]).combine_chunks()


def _schema(metadata: pa.Schema) -> pa.Schema:
    return pa.schema([*DOCUMENTS, *metadata])
