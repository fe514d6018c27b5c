"""A text file → Rows: the whole file is one document, row 0, named by its uri."""

from collections.abc import Iterator
from typing import IO

from embedder.core.schema import Reason
from embedder.source.records import Getters, Records, to_rows
from embedder.source.rows import Reading, Rows
from embedder.source.streams import read_blocks


def read_text(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the file as one text; it has no id and no metadata but nulls."""
    data = b"".join(read_blocks(file, reading.compression))
    records = Records()
    try:
        records.records.append(data.decode())
    except UnicodeDecodeError:
        records.refuse(Reason.UNDECODABLE, data, None)
    getters = Getters(texts=(lambda record: record,), id=None, metadata=tuple((lambda _: None) for _ in reading.metadata))
    yield from to_rows([records], getters, reading)
