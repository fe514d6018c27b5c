import pyarrow as pa
import pytest

from embedder.core.errors import SourceError


def test_quoted_newlines_commas_and_quotes_are_part_of_a_field(write_file, read):
    got = read(write_file("a.csv", 'id,text\r\n1,"two\nlines, and ""quotes"""\r\n2,plain\r\n'), id_column="id")
    assert got.texts == ['two\nlines, and "quotes"', "plain"]
    assert got.documents["doc_id"].to_pylist() == ["1", "2"]


def test_a_byte_order_mark_is_not_part_of_the_first_name(write_file, read):
    assert read(write_file("a.csv", b"\xef\xbb\xbftext,n\nx,1\n")).texts == ["x"]


def test_each_bad_record_is_quarantined_with_its_reason(write_file, read):
    records = [
        b"1,good",
        b"2",
        b"3,a,b",
        b"4,caf\xe9",
        b"5,",
        b"6,  ",
        b",no id",
        b"1,again",
        b'8,"a"b',
        b"",
        b"9,good too",
        b'10,"never closed',
        b'11,"x"',
    ]
    got = read(write_file("a.csv", b"id,text\n" + b"\n".join(records)), id_column="id")
    assert got.texts == ["good", "good too", "x"]
    assert got.documents["row"].to_pylist() == [0, 9, 11]
    reasons = ["malformed", "malformed", "undecodable", "empty_text", "empty_text", "missing_id", "duplicate_id", "malformed"]
    assert got.reasons == [*enumerate(reasons, 1), (10, "malformed")]
    assert got.quarantined["excerpt"].to_pylist()[:2] == ["1 fields, not 2: 2", "3 fields, not 2: 3,a,b"]
    got.quarantined.validate(full=True)


def test_values_are_text_unless_a_type_is_set(write_file, read):
    content = "text,n,d,b,t,s\nx,1,1.5,true,2024-01-31T10:00:00,\ny,,,,,7\nz,one,1,true,2024-01-31,7\n"
    types = {"n": "int64", "d": "double", "b": "bool", "t": "timestamp"}
    got = read(write_file("a.csv", content), metadata_columns=["n", "d", "b", "t", "s"], metadata_types=types)
    first, second = got.documents.select(["n", "d", "b", "t", "s"]).to_pylist()
    assert (first["n"], first["d"], first["b"], first["t"].isoformat(), first["s"]) == (1, 1.5, True, "2024-01-31T10:00:00+00:00", "")
    assert second == {"n": None, "d": None, "b": None, "t": None, "s": "7"}
    assert got.quarantined["excerpt"].to_pylist() == ['n="one" is not int64']


def test_undecodable_bytes_in_an_unread_column_are_ignored(write_file, read):
    assert read(write_file("a.csv", b"text,other\nx,caf\xe9\n")).texts == ["x"]


def test_a_large_field_is_read(write_file, read):
    text = "word " * 100_000
    assert read(write_file("a.csv.zst", f'text\n"{text}"\n')).texts == [text]


@pytest.mark.parametrize("content", ["id,body\n1,x\n", "text,text\nx,y\n"])
def test_a_shard_without_the_column_is_a_source_error(write_file, read, content):
    write_file("a.csv", "id,text\n1,x\n")
    write_file("b.csv", content)
    with pytest.raises(SourceError, match=r"b.csv: .* column.* 'text' \(found: .*\); set source.text_columns"):
        read(write_file("a.csv", "id,text\n1,x\n").parent, pa.schema([]))


def test_a_header_that_cannot_be_parsed_is_a_source_error(write_file, read):
    with pytest.raises(SourceError, match=r"a.csv: .*no CSV header in its first line"):
        read(write_file("a.csv", '"id"x,text\n1,x\n'), pa.schema([]))


@pytest.mark.parametrize("names", [("a.csv",), ("b.csv",), ("a.csv", "b.csv")])
@pytest.mark.parametrize("content", ["", "\n\r\n"])
def test_an_empty_file_is_a_shard_without_records(write_file, read, tmp_path, names, content):
    for name in ("a.csv", "b.csv"):
        write_file(name, content if name in names else "id,text\n1,x\n")
    got = read(tmp_path, id_column="id", metadata_columns=["id"])
    assert got.texts == ["x"] * (2 - len(names))
    assert not got.reasons


def test_a_stray_quote_takes_no_other_record_with_it(write_file, read):
    lines = ["id,text", '1,"stray', "2,plain", "3,plain", '4,"quoted, text"', '5,"two', 'lines"', "6,last"]
    got = read(write_file("a.csv", "\n".join(lines) + "\n"), id_column="id")
    assert got.texts == ["plain", "plain", "quoted, text", "two\nlines", "last"]
    assert got.reasons == [(0, "malformed")]
    assert got.quarantined["excerpt"].to_pylist() == ['1,"stray']


def test_quotes_that_never_match_end_the_reading(write_file, read, monkeypatch):
    monkeypatch.setattr("embedder.source.formats.csv_records.MOST_REREAD_BYTES", 1000)
    with pytest.raises(SourceError, match=r"too many of its quotes are not closed, the last in line \d+"):
        read(write_file("a.csv", "id,text\n" + 'a","b\n' * 200 + 'x"y\n'), pa.schema([]))


def test_a_record_over_several_lines_with_other_fields_is_quarantined_with_its_lines(write_file, read):
    got = read(write_file("a.csv", 'id,text\n1,"two\nlines",more\n2,x\n3,"two\nlines"\n'))
    assert got.texts == ["x", "two\nlines"]
    assert got.quarantined["excerpt"].to_pylist() == ["lines 2 to 3: 3 fields, not 2: 1,two\nlines,more"]


@pytest.mark.parametrize("end", ["2", '2,"open', '2,"open\n', '2,"a"b'])
def test_a_shard_that_is_cut_off_in_a_record_is_a_source_error(write_file, read, end):
    with pytest.raises(SourceError, match=r"a.csv: .*cut off"):
        read(write_file("a.csv", "id,text\n1,x\n" + end), pa.schema([]))
    assert read(write_file("a.csv", "id,text\n1,x\n2,y")).texts == ["x", "y"]


@pytest.mark.parametrize("long", ["2," + "y" * 100, '2,"' + "y\n" * 50 + '"', '2,"' + 'y""\n' * 30 + "y" * 60 + '"'])
def test_a_record_that_is_too_large_is_quarantined_and_the_next_is_read(write_file, read, long):
    got = read(write_file("a.csv", f'id,text\n1,x\n{long}\n3,"z\nz"\n'), id_column="id", max_record_bytes=50)
    assert got.texts == ["x", "z\nz"]
    assert got.reasons == [(1, "too_large")]


def test_quotes_around_more_than_a_record_that_never_close_are_a_source_error(write_file, read):
    with pytest.raises(SourceError, match=r"the quote that opens in line 3 is not closed"):
        read(write_file("a.csv", 'text\nx\n"never\n' + "closed\n" * 20), pa.schema([]), max_record_bytes=50)


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_another_separator_is_named(write_file, read, mark, name):
    with pytest.raises(SourceError, match=f"its columns are separated by {name}, and only commas are read"):
        read(write_file("a.csv", f"id{mark}text\n1{mark}x\n"), pa.schema([]))


def test_the_format_of_a_file_with_a_wrong_name_is_named(write_file, read):
    with pytest.raises(SourceError, match=r"by tabs, and only commas are read: set source.format='tsv'"):
        read(write_file("a.csv", "id\ttext\n1\tx\n"), pa.schema([]))
    assert read(write_file("a.csv", "id\ttext\n1\tx, y\n"), format="tsv").texts == ["x, y"]


def test_line_ends_of_old_macs_are_named(write_file, read):
    with pytest.raises(SourceError, match=r"its lines end in \\r"):
        read(write_file("a.csv", "id,text\r1,x\r"))


def test_a_message_names_a_few_of_many_columns(write_file, read):
    with pytest.raises(SourceError, match=r"no column 'text' \(found: c0, .*, c29 and 99970 more\)") as caught:
        read(write_file("a.csv", ",".join(f"c{number}" for number in range(100_000)) + "\n"), pa.schema([]))
    assert len(str(caught.value)) < 500


def test_nul_bytes_blank_names_and_repeated_other_names_are_read(write_file, read):
    assert read(write_file("a.csv", b"text,,n,n\na\0b,1,2,3\n")).texts == ["a\0b"]
