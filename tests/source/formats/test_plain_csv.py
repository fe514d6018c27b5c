from collections.abc import Sequence
from itertools import pairwise
from unittest.mock import patch

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedder.source.formats.csv_records import CsvRecords, Refused
from embedder.source.formats.plain_csv import find_end, parse_plain

FIELDS = st.sampled_from(
    [b"", b"a", b"bc", b"\xc3\xa9", b"\xe9", b"\0", b" ", b'"q"', b'"x,\r\ny"', b'"x\n""y"""', b'"\n"', b'""', b"\xef\xbb\xbf"]
)
ODD = st.lists(st.sampled_from([b"a", b",", b'"', b"\n", b"\r", b"\r\n", b"\xe9", b"\xef\xbb\xbf"]), max_size=12).map(b"".join)
LINES = st.lists(FIELDS, min_size=2, max_size=2).map(b",".join)
FILES = st.lists(st.tuples(LINES | LINES | LINES | ODD, st.sampled_from([b"\n", b"\n", b"\r\n"])).map(b"".join), max_size=12).map(b"".join)


def read_all(blocks: Sequence[bytes], most_bytes: int) -> list[list[str] | Refused | str]:
    """Return the records, or refusals, and the error that ended them."""
    found: list[list[str] | Refused | str] = []
    try:
        for item, _ in CsvRecords(iter(blocks), most_bytes, ",").read(2, [0, 1]):
            found += map(list, zip(*item.to_pydict().values(), strict=True)) if isinstance(item, pa.RecordBatch) else [item]
    except (EOFError, OSError) as error:
        found.append(str(error))
    return found


@settings(max_examples=200, deadline=None)
@given(FILES, st.lists(st.integers(0, 60), max_size=4), st.sampled_from([8, 10_000]))
@example(b"a,b\nc\rd,e\n", [], 10_000)
@example(b'a,"b"c\n', [], 10_000)
@example(b'"a\n",b\nx\n"a\n",b\n', [3], 10_000)
def test_every_file_gives_the_records_and_errors_of_the_exact_parser(data: bytes, cuts: list[int], most_bytes: int) -> None:
    places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    blocks = [data[start:stop] for start, stop in pairwise(places)]
    with patch("embedder.source.formats.csv_records.find_end", lambda *_: 0):
        exact = read_all(blocks, most_bytes)
    assert read_all(blocks, most_bytes) == exact


def test_records_that_a_csv_writer_writes_are_read_as_columns_whatever_a_quote_encloses() -> None:
    data = b'1,"two\nlines, and ""quotes"""\n2,plain\r\n3,"cut off\n'
    stop = find_end(data, ",")
    assert data[stop:] == b'3,"cut off\n'
    found = parse_plain(data[:stop], 2, ",", [1])
    assert found is not None
    assert found.to_pydict() == {"1": ['two\nlines, and "quotes"', "plain"]}


def test_an_odd_record_leaves_the_blocks_after_its_own_to_columns() -> None:
    blocks = [b'1,a\n2,"odd"b\n3,"c\n', b'd"\n4,e\n', b"5,f\n6,g\n"]
    items = [item for item, _ in CsvRecords(iter(blocks), 1000, ",").read(2, [1])]
    assert [type(item) for item in items] == [list, Refused, list, pa.RecordBatch]
