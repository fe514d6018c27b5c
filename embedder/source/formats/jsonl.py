"""JSON → Rows. A row is a record's number; blank lines are not counted."""

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.errors import SourceError
from embedder.core.schema import Reason
from embedder.source.decompression import read_blocks
from embedder.source.formats.json_stream import read_values, split_values
from embedder.source.formats.json_values import RepeatedKeyError, parse_json
from embedder.source.formats.records import Getter, Records, batch_by_size, check_getter, refuse_broken, to_rows
from embedder.source.formats.rows import Reading, ReadSamples, Rows, ShardColumns, name_some
from embedder.source.lines import CutLine, LastLine
from embedder.source.metadata_types import infer_type

SAMPLE_RECORDS = 1000
SAMPLE_BYTES = 4 << 20
"""A sample of a shard ends at this many records or bytes, whichever comes first."""
SAMPLE_RECORD_BYTES = 64 << 20
"""A longer record is not sampled. The rest of the shard is not read to find its end."""
_MISSING = object()
_SEVERAL = "Extra data"
_CUT = (json.JSONDecodeError, UnicodeDecodeError)


def inspect_jsonl(read_samples: ReadSamples) -> list[ShardColumns]:
    """Return the keys and types of the records of all sampled shards together; [] if the shards are empty."""
    samples = read_samples(_sample)
    records = [record for _, sampled in samples for record in sampled]
    if not records:
        return []

    def find_type(key: str) -> pa.DataType | None:
        values = [value for value in map(_get_key(key, _MISSING), records) if value is not _MISSING]
        return infer_type(values) if values else None

    return [ShardColumns(samples[0][0], list(dict.fromkeys(key for record in records for key in record)), find_type, "sampled")]


def _sample(file: IO[bytes], reading: Reading) -> list[dict[str, Any]]:
    """Return the first objects of a shard. Raise OSError if it has records, and the sample holds no object."""
    values: list[bytes] = []
    size_bytes = 0
    limited = _Limited(read_blocks(file, reading.compression))
    try:
        for value in read_values(limited, SAMPLE_RECORD_BYTES):
            values.append(value)
            if len(values) >= SAMPLE_RECORDS or (size_bytes := size_bytes + len(value)) >= SAMPLE_BYTES:
                break
    except EOFError:
        if not limited.stopped:
            raise
    parsed = _parse_values(values, sampled=True)
    unreadable = [met for reason, met in parsed.refused.values() if reason != Reason.TOO_LARGE]
    if unreadable and len(parsed.refused) == len(parsed.records):
        raise OSError(f"none of its first {len(values)} records is a JSON object: {unreadable[0]!r}")
    return [record for position, record in enumerate(parsed.records) if position not in parsed.refused]


class _Limited:
    """The first blocks of a shard; `stopped` if it has more."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left_bytes = SAMPLE_RECORD_BYTES + SAMPLE_BYTES
        self.stopped = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._left_bytes < 0:
            self.stopped = True
            raise StopIteration
        block = next(self._blocks)
        self._left_bytes -= len(block)
        return block


def read_jsonl(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read objects, one a line or in any other layout; refuse a record that is not an object.

    Raise SourceError if most records are not, or if no record has a text or an id; EOFError if the last line is cut off.
    """
    values = read_values(read_blocks(file, reading.compression), reading.source.max_record_bytes)
    batches = map(_parse_values, batch_by_size((value, len(value)) for value in values))
    columns = reading.find_columns(lambda key, _: _find(key, reading))
    yield from refuse_broken(to_rows(_require_keys(batches, reading), columns, reading), reading.shard.uri)


def _find(key: str, reading: Reading) -> Getter:
    return check_getter(_get_key(key, _MISSING), key, reading, _MISSING) if reading.has_constant(key) else _get_key(key)


def _require_keys(batches: Iterable[Records], reading: Reading) -> Iterator[Records]:
    """Raise SourceError at the end if the shard has objects, and none has a text key or none has the id key."""
    source: SourceConfig = reading.source
    wanted = {"source.text_columns": source.text_columns} | ({"source.id_column": (source.id_column,)} if source.id_column else {})
    own = {setting: [key for key in keys if not reading.has_constant(key)] for setting, keys in wanted.items()}
    missing = {setting: [_get_key(key, _MISSING) for key in keys] for setting, keys in own.items() if keys}
    names: dict[str, None] = {}
    for batch in batches:
        objects = [record for position, record in enumerate(batch.records) if position not in batch.refused] if missing else []
        for setting, getters in list(missing.items()):
            if any(get(record) is not _MISSING for record in objects for get in getters):
                del missing[setting]
        names = names or dict.fromkeys(key for record in objects[:1] for key in record)
        yield batch
    if names and missing:
        setting = next(iter(missing))
        keys = " or ".join(map(repr, wanted[setting]))
        raise SourceError(f"{reading.shard.uri}: no record has a key {keys} (found: {name_some(names)}); set {setting}")


def _parse_values(values: Iterable[bytes], sampled: bool = False) -> Records:
    """Parse records; `sampled`: the last line may be cut off because reading stopped."""
    parsed = Records()
    for value in values:
        if type(value) is CutLine:
            parsed.refuse_large(value, {})
            continue
        try:
            record = parse_json(value.decode())
        except (ValueError, RecursionError) as error:
            # ValueError also for bytes that are not UTF-8, and for an integer of more than 4,300 digits
            if isinstance(error, json.JSONDecodeError) and error.msg == _SEVERAL and (several := _parse_several(value)):
                parsed.records.extend(several)
                continue
            if type(value) is LastLine and not sampled and isinstance(error, _CUT):
                raise EOFError(f"its last line is cut off: {value[-50:].decode(errors='replace')!r}") from error
            note = f"{error}: ".encode(errors="replace") if isinstance(error, RepeatedKeyError) else b""
            parsed.refuse(Reason.UNDECODABLE if isinstance(error, UnicodeDecodeError) else Reason.MALFORMED, note + value, {})
        else:
            if isinstance(record, dict):
                parsed.records.append(record)
            else:
                parsed.refuse(Reason.MALFORMED, value, {})
    return parsed


def _parse_several(line: bytes) -> list[dict[str, Any]]:
    """Return the objects of a line that holds several, one after another; [] if it holds anything else."""
    try:
        found = [parse_json(each.decode()) for each in split_values(iter([line]), len(line))]
    except (ValueError, RecursionError, OSError, EOFError):
        return []
    return found if len(found) > 1 and line.startswith(b"{") and all(isinstance(each, dict) for each in found) else []


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
