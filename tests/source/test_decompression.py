import io
import os
import random

import pyarrow as pa
import pytest

from embedder.config.source import SourceConfig
from embedder.core.errors import SourceError
from embedder.core.units import Task
from embedder.source import decompression as streams
from embedder.source.decompression import damage_explained, read_blocks
from embedder.source.documents import read_units
from embedder.source.shards import list_shards

CODECS = [".gz", ".zst", ".bz2", ".xz"]
DATA = random.Random(0).randbytes(40_000) + b"a line\n" * 200_000


def decompress(data, codec):
    with damage_explained("shard"):
        return b"".join(read_blocks(io.BytesIO(data), codec[1:] or None))


@pytest.mark.parametrize("codec", ["", *CODECS])
def test_decompression_restores_the_data(compress, codec):
    assert decompress(compress[codec](DATA), codec) == DATA


@pytest.mark.parametrize("codec", CODECS)
def test_members_and_frames_are_concatenated(compress, codec):
    data = b"".join(compress[codec](part) for part in (b"one\n", b"", b"two\n", DATA))
    assert decompress(data, codec) == b"one\ntwo\n" + DATA


@pytest.mark.parametrize("codec", CODECS)
def test_truncation_at_any_point_is_damage(compress, codec):
    data = compress[codec](DATA[:60_000])
    for length in {0, 1, 2, 3, 5, 10, 18, *range(0, len(data), 7001), len(data) - 9, len(data) - 4, len(data) - 1}:
        with pytest.raises(SourceError, match=r"^shard: cannot be read to its end .*truncated"):
            decompress(data[:length], codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("length", [1, 2, 5, 30, -1])
def test_truncation_in_a_second_member_is_damage(compress, codec, length):
    data = compress[codec](DATA[:60_000])
    with pytest.raises(SourceError):
        decompress(data + data[:length], codec)


@pytest.mark.parametrize("codec", CODECS)
def test_garbage_after_the_last_member_is_damage(compress, codec):
    with pytest.raises(SourceError):
        decompress(compress[codec](DATA[:1000]) + b"garbage that is no member", codec)


@pytest.mark.parametrize("codec", [".gz", ".xz"])
def test_zero_padding_at_the_end_is_allowed(compress, codec):
    assert decompress(compress[codec](b"text") + bytes(512), codec) == b"text"


@pytest.mark.parametrize("codec", ["", *CODECS])
def test_a_byte_order_mark_is_dropped_once(compress, codec):
    assert decompress(compress[codec](b"\xef\xbb\xbf\xef\xbb\xbftext"), codec) == b"\xef\xbb\xbftext"


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("small_bytes", [1 << 20, 0])
def test_a_shard_that_changed_while_it_was_read_is_refused(tmp_path, write_file, monkeypatch, num_shards, small_bytes):
    monkeypatch.setattr(streams, "SMALL_SHARD_BYTES", small_bytes)
    for number in range(num_shards):
        write_file(f"{number}.jsonl", [{"text": "before"}] * 3)
    source = SourceConfig(uri=str(tmp_path), rows_per_unit=1)
    task = Task("k", "v", list_shards(source).shards)
    os.utime(tmp_path / "0.jsonl", ns=(1, 1))
    with pytest.raises(SourceError, match=r"0.jsonl: changed while it was read .*run again"):
        list(read_units(task, source, pa.schema([])))


def test_a_deleted_shard_is_a_source_error(tmp_path, write_file):
    write_file("0.jsonl", [{"text": "x"}])
    source = SourceConfig(uri=str(tmp_path))
    task = Task("k", "v", list_shards(source).shards)
    (tmp_path / "0.jsonl").unlink()
    with pytest.raises(SourceError, match=r"0.jsonl: not found"):
        list(read_units(task, source, pa.schema([])))
