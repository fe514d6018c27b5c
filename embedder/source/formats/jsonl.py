"""JSON lines → Rows. A row is a record's number; blank lines are not counted."""

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa

from embedder.core.errors import ConfigError
from embedder.core.schema import Reason
from embedder.source.decompression import read_blocks, read_lines
from embedder.source.formats.records import Getter, Records, batch_by_size, to_rows
from embedder.source.formats.rows import Reading, ReadSamples, Rows, ShardColumns
from embedder.source.metadata_types import infer_type

SAMPLE_RECORDS = 1000
SAMPLE_BYTES = 4 << 20
"""A sample of a shard ends at this many records or bytes, whichever comes first."""
_MISSING = object()


def inspect_jsonl(read_samples: ReadSamples) -> list[ShardColumns]:
    """Return the keys and types of the records of all sampled shards together; [] if the shards are empty."""
    samples = read_samples(_sample)
    records = [record for _, parsed in samples for record in parsed.records if record]
    uri = samples[0][0]
    if not records:
        if any(parsed.records for _, parsed in samples):
            raise ConfigError(f"{uri} has no JSON object among its first lines; JSON is read as one object a line")
        return []

    def find_type(key: str) -> pa.DataType | None:
        values = [value for value in map(_get_key(key, _MISSING), records) if value is not _MISSING]
        return infer_type(values) if values else None

    return [ShardColumns(uri, list(dict.fromkeys(key for record in records for key in record)), find_type, "sampled")]


def _sample(file: IO[bytes], compression: str | None) -> Records:
    lines: list[bytes] = []
    size_bytes = 0
    for line in _read_nonblank(file, compression):
        lines.append(line)
        size_bytes += len(line)
        if len(lines) >= SAMPLE_RECORDS or size_bytes >= SAMPLE_BYTES:
            break
    return _parse_lines(lines)


def read_jsonl(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read one object a line; refuse a line that is not an object."""
    batches = batch_by_size((line, len(line)) for line in _read_nonblank(file, reading.compression))
    yield from to_rows(map(_parse_lines, batches), reading.find_columns(lambda key, _: _get_key(key)), reading)


def _read_nonblank(file: IO[bytes], compression: str | None) -> Iterator[bytes]:
    return (line for line in read_lines(read_blocks(file, compression)) if line and not line.isspace())


def _parse_lines(lines: Iterable[bytes]) -> Records:
    parsed = Records()
    for line in lines:
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError:
            parsed.refuse(Reason.UNDECODABLE, line, {})
        except (ValueError, RecursionError):
            # ValueError also for an integer of more than 4,300 digits
            parsed.refuse(Reason.MALFORMED, line, {})
        else:
            if isinstance(record, dict):
                parsed.records.append(record)
            else:
                parsed.refuse(Reason.MALFORMED, line, {})
    return parsed


def _get_key(key: str, missing: Any = None) -> Getter:
    """Return a getter of a key; a dot descends into an object unless the record has the whole key."""
    path = key.split(".")

    def get_nested(record: dict[str, Any]) -> Any:
        if key in record:
            return record[key]
        value: Any = record
        for name in path:
            if not isinstance(value, dict):
                return missing
            value = value.get(name, missing)
        return value

    return get_nested if len(path) > 1 else lambda record: record.get(key, missing)
