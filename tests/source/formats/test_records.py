import pyarrow as pa


def test_a_file_is_a_document_named_by_its_uri(write_file, read):
    path = write_file("a.txt.gz", b"\xef\xbb\xbfone\n\ntwo\n")
    assert read(path).documents.select(["doc_id", "text", "row"]).to_pylist() == [{"doc_id": f"{path}#0", "text": "one\n\ntwo\n", "row": 0}]


def test_empty_blank_and_undecodable_files_are_quarantined(write_file, read, tmp_path):
    for name, content in {"a.txt": b"", "b.txt": b" \n", "c.txt": b"caf\xe9", "d.txt": b"good"}.items():
        write_file(name, content)
    got = read(tmp_path)
    assert got.texts == ["good"]
    assert got.quarantined["reason"].to_pylist() == ["empty_text", "empty_text", "undecodable"]
    assert got.quarantined["shard"].to_pylist() == [f"{tmp_path}/{name}.txt" for name in "abc"]


def test_any_file_is_text_if_the_format_says_so(write_file, read, tmp_path):
    write_file("README.md", "# title")
    assert read(tmp_path, format="text").texts == ["# title"]


def test_metadata_of_text_files_is_null(write_file, read):
    got = read(write_file("a.txt", "x"), pa.schema([("n", pa.list_(pa.int64()))]), metadata_columns=["n"])
    assert got.documents["n"].to_pylist() == [None]


def test_a_file_that_is_too_large_is_quarantined(write_file, read, tmp_path):
    write_file("a.txt", "x" * 50)
    write_file("b.txt.gz", "y" * 51)
    got = read(tmp_path, max_record_bytes=50)
    assert got.texts == ["x" * 50]
    assert got.quarantined["reason"].to_pylist() == ["too_large"]
