"""A block of CSV → its records as one record batch, where PyArrow provably reads what Python's strict csv parser reads."""

import codecs

import numpy as np
import pyarrow as pa
import pyarrow.csv

_NEWLINE, _RETURN, _QUOTE = b'\n\r"'
_STRINGS = pa.string()


def find_end(data: bytes, delimiter: str) -> int:
    """Return the end of the last whole record of a block that begins with a record; 0 if none ends there, or if the parsers may differ.

    They differ only in quotes inside or behind a field, in a carriage return that ends a line, and in a byte order mark.
    """
    chars_N = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(chars_N == _QUOTE)
    newline = len(data)
    while (newline := data.rfind(b"\n", 0, newline)) >= 0 and (num_before := int(np.searchsorted(quotes, newline))) % 2:
        newline = int(quotes[num_before - 1])
    if newline < 0 or data.startswith(codecs.BOM_UTF8):
        return 0
    chars_N, quotes = chars_N[: newline + 1], quotes[:num_before]
    opening, closing = quotes[::2], quotes[1::2]
    allowed = np.zeros(256, bool)
    allowed[[_NEWLINE, _QUOTE, ord(delimiter)]] = True
    # the byte "before" the first is the last one, a newline
    is_plain = allowed[chars_N[opening - 1]].all()
    allowed[_RETURN] = True
    is_plain = is_plain and allowed[chars_N[closing + 1]].all()
    if is_plain and b"\r" in data:
        returns = np.flatnonzero(chars_N == _RETURN)
        between = returns[np.searchsorted(quotes, returns) % 2 == 0]
        is_plain = (chars_N[between + 1] == _NEWLINE).all()
    return newline + 1 if is_plain else 0


def count_lines(data: bytes | memoryview) -> int:
    """Return the number of newlines, in a tenth of the time of `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _NEWLINE))


def parse_plain(data: bytes | memoryview, num_fields: int, delimiter: str, wanted: list[int]) -> pa.RecordBatch | None:
    """Return the wanted fields of the records of a block up to its `find_end`, as text in columns named by their numbers.

    None if a record has another number of fields, a wanted field is not UTF-8, or all lines are blank.
    """
    names = list(map(str, range(num_fields)))
    columns = [names[number] for number in wanted]
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(pa.py_buffer(data)),
            pa.csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, _STRINGS), include_columns=columns),
        )
    except pa.ArrowInvalid:
        return None
    return next(iter(table.combine_chunks().to_batches()), None)
