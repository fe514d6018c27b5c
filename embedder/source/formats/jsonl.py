"""JSON lines → Rows. A row is a record's number: blank lines are no records and are not counted."""

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from embedder.core.schema import Reason
from embedder.source.decompression import read_blocks, read_lines
from embedder.source.formats.records import Getter, Getters, Records, batch_by_size, to_rows
from embedder.source.validation import Reading, Rows


def read_jsonl(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read one object a line; a line that is none is refused and the next one read."""
    lines = read_lines(read_blocks(file, reading.compression))
    batches = batch_by_size((line, len(line)) for line in lines if line and not line.isspace())
    source = reading.source
    getters = Getters(
        texts=tuple(get_key(key) for key in source.text_columns),
        id=get_key(source.id_column) if source.id_column else None,
        metadata=tuple(get_key(source.metadata_columns[name]) for name in reading.metadata.names),
    )
    yield from to_rows(map(_parse_lines, batches), getters, reading)


def sample_jsonl(file: IO[bytes], compression: str | None, most: tuple[int, int]) -> tuple[list[dict[str, Any]], int]:
    """Read the first records, up to a number of them and of bytes: those that are objects, and how many were looked at."""
    sampled: list[dict[str, Any]] = []
    size_bytes = num_records = 0
    for line in read_lines(read_blocks(file, compression)):
        if line and not line.isspace():
            sampled += _parse_lines([line]).records
            num_records, size_bytes = num_records + 1, size_bytes + len(line)
        if num_records >= most[0] or size_bytes >= most[1]:
            break
    return [record for record in sampled if record], num_records


def _parse_lines(lines: Iterable[bytes]) -> Records:
    parsed = Records()
    for line in lines:
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError:
            parsed.refuse(Reason.UNDECODABLE, line, {})
        except (ValueError, RecursionError):
            # ValueError is also an integer of more than 4,300 digits
            parsed.refuse(Reason.MALFORMED, line, {})
        else:
            if isinstance(record, dict):
                parsed.records.append(record)
            else:
                parsed.refuse(Reason.MALFORMED, line, {})
    return parsed


def get_key(key: str, missing: Any = None) -> Getter:
    """Make a getter; a dot reaches into an object, unless the record has the key with the dot in it."""
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
