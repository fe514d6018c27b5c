"""The bytes of a file, not its name, decide how it is read."""

import gzip
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.core.errors import SourceError

RECORDS = [{"id": str(number), "text": f"text {number} ü"} for number in range(12)]
LINES = "".join(json.dumps(each) + "\n" for each in RECORDS)
CSV = "id,text\n" + "".join(f"{each['id']},{each['text']}\n" for each in RECORDS)
TEXTS = [each["text"] for each in RECORDS]


def to_zip(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", data)
    return file.getvalue()


def to_parquet():
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), file)
    return file.getvalue()


@pytest.mark.parametrize("codec", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize(("name", "text"), [("a.jsonl", LINES), ("a.csv", CSV), ("a.jsonl.gz", LINES), ("a.jsonl.xz", LINES)])
def test_a_shard_is_decompressed_by_its_bytes(tmp_path, read, compress, codec, name, text):
    (tmp_path / name).write_bytes(compress[codec](text.encode()))
    assert read(tmp_path, id_column="id").texts == TEXTS


def test_a_text_file_is_decompressed_by_its_bytes(tmp_path, read):
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"a text"))
    assert read(tmp_path).texts == ["a text"]


@pytest.mark.parametrize("codec", [".gz", ".zst", ".bz2", ".xz"])
def test_two_compressions_are_undone_and_more_are_refused(tmp_path, read, compress, codec):
    data = compress[codec](gzip.compress(LINES.encode()))
    (tmp_path / f"a.jsonl{codec}").write_bytes(data)
    assert read(tmp_path).texts == TEXTS
    (tmp_path / f"a.jsonl{codec}").write_bytes(compress[codec](data))
    with pytest.raises(SourceError, match=r"a.jsonl.*: .*compressed more than 2 times"):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(("name", "text"), [("a.jsonl", LINES), ("a.csv", CSV), ("a.json.gz", json.dumps(RECORDS))])
def test_a_byte_order_mark_names_the_encoding(write_file, read, encoding, name, text):
    assert read(write_file(name, text.encode(encoding)), id_column="id").texts == TEXTS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(("name", "text"), [("a.jsonl", LINES), ("a.csv", CSV), ("a.txt", "a short text")])
def test_wide_characters_without_a_byte_order_mark_are_a_source_error(write_file, read, encoding, name, text):
    with pytest.raises(SourceError, match=f"{name}: .*UTF-16 or UTF-32 without a byte order mark"):
        read(write_file(name, text.encode(encoding)))


def test_wide_characters_that_are_cut_off_are_a_source_error(write_file, read):
    with pytest.raises(SourceError, match=r"a.jsonl: cannot be read to its end"):
        read(write_file("a.jsonl", LINES.encode("utf-16")[:-1]))


FOREIGN = {
    "a parquet file": to_parquet(),
    "a ZIP archive": to_zip(LINES),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "a PDF": b"%PDF-1.7\n",
    "a tar archive": b"a.jsonl".ljust(257, b"\0") + b"ustar\x0000" + bytes(300),
    "LZ4": b"\x04\x22\x4d\x18" + bytes(20),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.txt.gz"])
def test_a_file_of_another_kind_is_a_source_error_beside_good_shards(write_file, read, kind, name):
    write_file("b" + name[1:], {"a.jsonl": LINES, "a.csv": CSV}.get(name, "x"))
    with pytest.raises(SourceError, match=f"{name}: .*it is {kind}"):
        read(write_file(name, FOREIGN[kind]).parent)


@pytest.mark.parametrize("text", ["ORCHIDS", "PAR1 is a mark", "PK", "BZh9", "Objects", "a\0b", "<html>a page</html>"])
def test_a_text_that_only_begins_like_another_kind_is_read(write_file, read, text):
    assert read(write_file("a.txt", text)).texts == [text]


@pytest.mark.parametrize("page", ["<!DOCTYPE html>\n<html>\n</html>\n", "<?xml version='1.0'?><Error/>"])
def test_an_error_page_is_a_source_error_beside_good_shards(write_file, read, page):
    write_file("a.jsonl", LINES)
    with pytest.raises(SourceError, match=r"b.jsonl: .*it is HTML or XML, not JSON"):
        read(write_file("b.jsonl", page).parent)


@pytest.mark.parametrize("answer", ["Internal Server Error\n", '["error"]\n', "7\n"])
def test_a_shard_without_a_record_is_a_source_error_beside_good_shards(write_file, read, answer):
    write_file("a.jsonl", LINES)
    with pytest.raises(SourceError, match=r"b.jsonl: 1 of 1 records cannot be parsed \(the first is record 0: .*\)"):
        read(write_file("b.jsonl", answer).parent)


@pytest.mark.parametrize(("answer", "setting"), [({"error": "busy"}, "text_columns"), ({"text": "busy"}, "id_column")])
def test_a_shard_without_the_key_is_a_source_error_beside_good_shards(write_file, read, answer, setting):
    write_file("a.jsonl", LINES)
    with pytest.raises(SourceError, match=rf"b.jsonl: no record has a key '.*' \(found: .*\); set source.{setting}"):
        read(write_file("b.jsonl", [answer]).parent, id_column="id")


@pytest.mark.parametrize(("num_bad", "broken"), [(12, False), (13, True)])
@pytest.mark.parametrize("bad", [b"nope\n", b'{"text": "caf\xe9"}\n'])
@pytest.mark.parametrize("first", [True, False])
def test_a_shard_is_broken_if_most_of_its_records_are(write_file, read, num_bad, broken, bad, first):
    write_file("a.jsonl", LINES)
    path = write_file("b.jsonl", bad * num_bad + LINES.encode() if first else LINES.encode() + bad * num_bad)
    if broken:
        with pytest.raises(SourceError, match=r"b.jsonl: 13 of 25 records cannot be parsed"):
            read(path.parent)
    else:
        assert len(read(path.parent).quarantined) == num_bad


def test_a_csv_shard_is_broken_if_most_of_its_records_are(write_file, read):
    with pytest.raises(SourceError, match=r"a.csv: 2 of 3 records cannot be parsed"):
        read(write_file("a.csv", "id,text\n1,x\n2\n3,y,z\n"))
