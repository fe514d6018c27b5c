"""A listing → a random sample of its documents, spread over shards by size, without reading the corpus."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.columns import Shards
from embedder.core.errors import ConfigError, SourceError
from embedder.core.schema import DOCUMENTS
from embedder.core.units import Shard
from embedder.source.decompression import open_shard
from embedder.source.formats.registry import encoding_of, number_records
from embedder.source.formats.rows import Reading
from embedder.source.selection import read_rows
from embedder.source.shards import Listing
from embedder.source.validation import CheckedRows, SeenIds, check_rows

MOST_SHARDS = 64
"""Shards sampled first, drawn by size; more are opened only if these hold too few documents."""
LEAST_READ_BYTES = 4 << 20
"""Bytes read of a shard before reading may stop: small shards are read whole."""
CANDIDATES = 4
"""Documents read for each one kept, so that a sample is not all neighbors in a shard."""
NO_METADATA = pa.schema([])

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """Documents drawn at random, in order of shard and row, and the amount read for them."""

    documents: pa.Table
    """schema.DOCUMENTS and the metadata."""
    records_read: int
    documents_read: int
    """Records that can be embedded."""
    bytes_read: int
    """On storage, compressed as they are."""

    def estimate_documents(self, size_bytes: int) -> int:
        """Estimate the number of valid documents in `size_bytes` on storage."""
        return round(size_bytes * self.documents_read / self.bytes_read) if self.bytes_read else 0


def sample_documents(source: SourceConfig, listing: Listing, num_documents: int, seed: int, metadata: pa.Schema = NO_METADATA) -> Sample:
    """Draw documents at random, or return all if there are no more; equal arguments return equal samples.

    Only the start of a large shard is read unless it is parquet. Shards that cannot be read are skipped with a warning.
    """
    draw = np.random.default_rng(seed)
    ordered = _order_by_size(listing.shards, draw)
    first = ordered[:MOST_SHARDS]
    total_bytes = max(sum(shard.size_bytes for shard in first), 1)
    quotas = [math.ceil(num_documents * shard.size_bytes / total_bytes) for shard in first]
    samples: list[tuple[Sample, int]] = []
    failure: SourceError | None = None
    for number, (shard, quota) in enumerate(zip(ordered, chain(quotas, repeat(math.ceil(num_documents / MOST_SHARDS))), strict=False)):
        if number >= len(first) and sum(min(each.documents.num_rows, share) for each, share in samples) >= num_documents:
            break
        try:
            samples.append((_sample_shard(shard, source, metadata, quota, draw), quota))
        except SourceError as error:
            failure = failure or error
            logger.warning("%s", error)
    if failure and not samples:
        raise failure
    documents = _choose([(each.documents, quota) for each, quota in samples], num_documents, metadata, draw)
    totals = [(each.records_read, each.documents_read, each.bytes_read) for each, _ in samples]
    sample = Sample(documents, *(sum(column) for column in zip((0, 0, 0), *totals, strict=True)))
    if not documents.num_rows:
        found = f"none of {sample.records_read} records read can be embedded; check text_columns"
        raise ConfigError(f"source.uri={source.uri!r}: {found if sample.records_read else 'no record is there'}")
    return sample


def _order_by_size(shards: Shards, draw: np.random.Generator) -> Shards:
    """Shuffle shards as drawing without replacement would, with probabilities by size."""
    return shards.select(np.argsort(draw.exponential(size=len(shards)) / np.maximum(shards.sizes, 1)))


def _sample_shard(shard: Shard, source: SourceConfig, metadata: pa.Schema, quota: int, draw: np.random.Generator) -> Sample:
    """Read enough candidates and keep twice the quota, in random order: other shards may hold too few."""
    held = [_empty(metadata)]
    num_documents = records = size_bytes = 0
    for rows, size_bytes in _read_rows(shard, source, metadata, draw):
        held.append(rows.documents)
        num_documents, records = num_documents + rows.documents.num_rows, records + rows.num_rows
        if num_documents >= CANDIDATES * quota and size_bytes >= LEAST_READ_BYTES:
            break
    chosen = pa.concat_tables(held).take(draw.permutation(num_documents)[: 2 * quota])
    return Sample(chosen, records, num_documents, size_bytes)


def _read_rows(shard: Shard, source: SourceConfig, metadata: pa.Schema, draw: np.random.Generator) -> Iterator[tuple[CheckedRows, int]]:
    """Yield checked rows and the bytes on storage read so far: slices in random order, or any other format from its start."""
    encoding = encoding_of(shard, source.format)
    assert encoding is not None, shard
    format_ = encoding.format
    with open_shard(shard, source, narrow=format_.slice is not None) as file:
        if format_.slice is None:
            seen = SeenIds()
            reading = Reading(shard, encoding.compression, source, metadata)
            for rows in read_rows(format_, file, reading):
                yield check_rows(rows, reading, seen), min(file.tell(), shard.size_bytes)
            return
        slices = number_records(format_.slice(file, shard.size_bytes, 1), shard)
        for number, chosen in enumerate(draw.permutation(len(slices)), 1):
            start, stop, first_row = slices[chosen]
            reading = Reading(shard, None, source, metadata, (start, stop), first_row)
            for rows in read_rows(format_, file, reading):
                yield check_rows(rows, reading, SeenIds()), shard.size_bytes * number // len(slices)


def _choose(held: Sequence[tuple[pa.Table, int]], num_documents: int, metadata: pa.Schema, draw: np.random.Generator) -> pa.Table:
    """Return documents up to each shard's quota, filled up from shards with more."""
    chosen = pa.concat_tables([_empty(metadata), *(documents.slice(0, quota) for documents, quota in held)])
    spare = pa.concat_tables([_empty(metadata), *(documents.slice(quota) for documents, quota in held)])
    chosen = chosen.take(draw.permutation(chosen.num_rows)[:num_documents])
    chosen = pa.concat_tables([chosen, spare.take(draw.permutation(spare.num_rows)[: num_documents - chosen.num_rows])])
    return chosen.sort_by([("shard", "ascending"), ("row", "ascending")]).combine_chunks()


def _empty(metadata: pa.Schema) -> pa.Table:
    return pa.schema([*DOCUMENTS, *metadata]).empty_table()
