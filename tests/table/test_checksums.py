"""A part's checksum covers every byte, and is known from its footer alone."""

import io
import random

import pyarrow as pa
import pyarrow.parquet as pq

from embedder.table.checksums import checksum_of, compute_checksum
from embedder.table.parts import encode_parquet


class Counted(io.BytesIO):
    """A file that counts the bytes read from it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def build_part() -> bytes:
    draw = random.Random(0)
    texts = [draw.randbytes(400).hex() for _ in range(2000)]
    return encode_parquet(pa.table({"doc_id": [str(number) for number in range(2000)], "text": texts}), {"name": "part"})


def test_the_footer_alone_gives_the_checksum_of_the_whole_file() -> None:
    data = build_part()
    file = Counted(data)
    assert compute_checksum(file, trusts_pages=True) == checksum_of(data)
    assert file.count < len(data) / 4


def test_a_flip_of_any_byte_changes_the_checksum() -> None:
    data, draw = build_part(), random.Random(1)
    whole = checksum_of(data)
    for place in [*draw.sample(range(len(data)), 100), *range(len(data) - 100, len(data)), 0]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        assert checksum_of(bytes(flipped)) != whole, place


def test_a_file_without_a_digest_of_its_pages_has_the_checksum_of_its_bytes() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), sink)
    assert checksum_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checksum_of(sink.getvalue()) == compute_checksum(sink, trusts_pages=True)
