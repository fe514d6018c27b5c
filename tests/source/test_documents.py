import hashlib
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder.config.source import SourceConfig
from embedder.core.errors import SourceError
from embedder.core.schema import DOCUMENTS, QUARANTINE
from embedder.core.storage import Store
from embedder.core.units import Shard, Task
from embedder.source import decompression as streams
from embedder.source import documents
from embedder.source.documents import read_units
from embedder.source.shards import list_shards

QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RECORDS = [{"id": str(n % 17), "text": f"text {n} " * (n % 5), "n": n} for n in range(40)]


def test_a_text_is_hashed_as_utf_8(write_file, read):
    texts = ["a", "ä 🙂", "x" * 10_000]
    got = read(write_file("a.jsonl", [{"text": text} for text in texts]))
    assert got.documents["content_hash"].to_pylist() == [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]


def test_an_empty_task_is_one_empty_unit(write_file, tmp_path):
    path = write_file("a.jsonl", "\n")
    source = SourceConfig(uri=str(path), metadata_columns=["n"])
    for shards in ((), list_shards(source).shards):
        (unit,) = read_units(Task("k", "v", shards, first_row=5, ends=False), source, pa.schema([("n", pa.int64())]))
        assert (unit.first_row, unit.stop_row, unit.last) == (5, 5, False)
        assert unit.documents.schema == pa.schema([*DOCUMENTS, ("n", pa.int64())])
        assert unit.quarantined.schema == QUARANTINE


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.parquet"])
@QUICK
@given(rows_per_unit=st.integers(1, 45), text_bytes=st.sampled_from([1, 60, 1 << 26]))
def test_units_are_a_chain_and_their_contents_do_not_depend_on_the_cuts(write_file, read, name, rows_per_unit, text_bytes):
    path = write_file(name, RECORDS)
    whole = read(path, id_column="id", metadata_columns=["n"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "UNIT_TEXT_BYTES", text_bytes)
        got = read(path, id_column="id", metadata_columns=["n"], rows_per_unit=rows_per_unit)
    assert got.documents.equals(whole.documents)
    assert got.quarantined.equals(whole.quarantined)
    assert [unit.last for unit in got.units] == [False] * (len(got.units) - 1) + [True]
    assert [unit.first_row for unit in got.units] == [0, *(unit.stop_row for unit in got.units[:-1])]
    for unit in got.units:
        rows = unit.stop_row - unit.first_row
        assert rows == len(unit.documents) + len(unit.quarantined)
        assert 0 < rows <= rows_per_unit
        assert sum(len(text) for text in unit.documents["text"].to_pylist()[:-1]) < text_bytes


def test_units_do_not_depend_on_how_a_shard_is_stored(write_file, read, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "UNIT_TEXT_BYTES", 100)
    paths = [write_file(name, RECORDS) for name in ("a.jsonl", "b.jsonl.xz", "c.parquet")]
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "d.parquet", row_group_size=40)
    chains = [[(unit.first_row, unit.stop_row) for unit in read(path, rows_per_unit=7).units] for path in [*paths, tmp_path / "d.parquet"]]
    assert chains == chains[:1] * 4


@pytest.mark.parametrize("small_bytes", [1 << 20, 0])
def test_a_unit_spans_the_shards_of_a_bucket(write_file, read, tmp_path, monkeypatch, small_bytes):
    monkeypatch.setattr(streams, "SMALL_SHARD_BYTES", small_bytes)
    for number in range(50):
        write_file(f"{number:03}.jsonl", [{"id": "same", "text": f"{number} {row}"} for row in range(2)])
    got = read(tmp_path, id_column="id", rows_per_unit=30)
    assert got.texts == [f"{number} 0" for number in range(50)]
    assert got.reasons == [(1, "duplicate_id")] * 50
    assert [(unit.first_row, unit.stop_row, unit.last) for unit in got.units] == [
        (0, 30, False),
        (30, 60, False),
        (60, 90, False),
        (90, 100, True),
    ]
    assert got.documents["shard"].to_pylist() == [f"{tmp_path}/{number:03}.jsonl" for number in range(50)]


def test_a_unit_that_is_exactly_full_is_the_last(write_file, read):
    got = read(write_file("a.jsonl", [{"text": "x"}] * 6), rows_per_unit=3)
    assert [(unit.first_row, unit.stop_row, unit.last) for unit in got.units] == [(0, 3, False), (3, 6, True)]


def test_an_id_belongs_to_the_first_record_that_has_it(write_file, read):
    rows = [{"id": "a", "text": ""}, {"id": "a", "text": "x"}, {"id": "b", "text": "y"}]
    for name in ("a.jsonl", "a.parquet"):
        got = read(write_file(name, rows), id_column="id")
        assert got.reasons == [(0, "empty_text"), (1, "duplicate_id")]


def test_duplicates_far_apart_are_found(write_file, read):
    ids = [str(number) for number in range(9000)] + ["5", "8999"]
    got = read(write_file("a.jsonl", [{"id": id_, "text": "x"} for id_ in ids]), id_column="id")
    assert got.reasons == [(9000, "duplicate_id"), (9001, "duplicate_id")]


def test_a_damaged_shard_has_no_final_unit(write_file, compress):
    path = write_file("a.jsonl.gz", RECORDS)
    path.write_bytes(path.read_bytes()[:-4])
    source = SourceConfig(uri=str(path), rows_per_unit=40)
    units = read_units(Task("k", "v", list_shards(source).shards), source, pa.schema([]))
    with pytest.raises(SourceError, match=r"a.jsonl.gz: cannot be read to its end"):
        next(units)


def test_a_shard_of_unknown_format_is_a_source_error():
    with pytest.raises(SourceError, match=r"its suffix names no known format; set source.format"):
        list(read_units(Task("k", "v", (Shard(__file__, Store(__file__).info().version, 1),)), SourceConfig(uri="x"), pa.schema([])))


def mutate(data: bytes, seed: int) -> bytes:
    """Change, drop, repeat or insert some bytes."""
    chance = random.Random(seed)
    mutated = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at, length = chance.randrange(len(mutated) + 1), chance.randint(1, 8)
        met = mutated[at : at + length]
        change = chance.choice(
            [chance.randbytes(len(met)), b"", chance.randbytes(length), met * 2, *(b'"', b"\n", b",", b"{", b"\\u", b"\xff", b"\0")]
        )
        mutated[at : at + length] = change
    return bytes(mutated)


def to_csv(records):
    return "id,text,n\n" + "".join(f'{record["id"]},"{record["text"]}\nnext",{record["n"]}\n' for record in records)


def to_parquet(records):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink, row_group_size=15)
    return sink.getvalue()


FUZZED = {
    "a.jsonl": "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
    "a.csv": to_csv(RECORDS).encode(),
    "a.parquet": to_parquet(RECORDS),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.csv.bz2", "a.csv.xz"])
@pytest.mark.parametrize("damaged", ["content", "file"])
def test_no_bytes_raise_anything_but_a_source_error(write_file, read, name, damaged):
    num_read = 0
    messages: list[str] = []
    metadata = pa.schema([("n", pa.int64())])
    for seed in range(25):
        content = FUZZED[name.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2").removesuffix(".xz")]
        path = write_file(name, mutate(content, seed) if damaged == "content" else content)
        if damaged == "file":
            path.write_bytes(mutate(path.read_bytes(), seed))
        try:
            got = read(path, metadata, id_column="id", metadata_columns=["n"], rows_per_unit=9)
        except SourceError as error:
            messages.append(str(error))
            continue
        num_read += 1
        assert got.num_records == got.units[-1].stop_row
        for table in (got.documents, got.quarantined):
            table.validate(full=True)
        rows = sorted(got.documents["row"].to_pylist() + got.quarantined["row"].to_pylist())
        assert rows == list(range(got.num_records))
    assert all(name in message for message in messages)
    assert num_read or damaged == "file" or name == "a.parquet"
