import gzip

import brotli
import pytest

from embedder.core.errors import SourceError
from tests.source.formats.test_every_format import read as read_selected

HTML = (
    "<html><head><title>Ü &amp; T</title><style>p{}</style></head>"
    "<body><script>no</script><p>un<b>bre</b>ak <i>é</i></p><p>two</p></body></html>"
)


def record(kind, body=b"", url="http://a/", **fields):
    lines = {"WARC-Type": kind, "WARC-Record-ID": f"<urn:{url}>", "WARC-Target-URI": url, "WARC-Date": "2026-01-02T03:04:05Z"}
    lines |= {name.replace("_", "-"): value for name, value in fields.items()} | {"Content-Length": len(body)}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return b"WARC/1.0\r\n" + head.encode() + b"\r\n" + body + b"\r\n\r\n"


def page(body, content_type="text/html; charset=utf-8", status=200, fields=(), **record_fields):
    head = [f"HTTP/1.1 {status} OK", f"Content-Type: {content_type}", *fields, "", ""]
    return record("response", "\r\n".join(head).encode() + body, Content_Type="application/http; msgtype=response", **record_fields)


def read_all(read, path, **settings):
    return read(path, metadata_columns=["title", "url", "date", "status", "content_type", "truncated"], id_column="id", **settings)


def test_documents_are_read_and_other_records_are_counted(write_file, tmp_path, read):
    others = [
        record("warcinfo", b"a: b\r\n"),
        record("request", b"GET / HTTP/1.1\r\n\r\n"),
        page(b"\x89PNG", "image/png"),
        record("metadata"),
    ]
    dns = record("response", b"20260102\r\na. IN A 1.2.3.4\r\n", Content_Type="text/dns")
    wet = record("conversion", "Tür".encode(), url="http://wet/", Content_Type="text/plain")
    records = [*others, page(HTML.encode(), status=404, url="http://b/", WARC_Truncated="length"), dns, wet]
    got = read_all(read, write_file("a.warc", b"".join(records)))
    first, second = got.documents.select(["doc_id", "row", "text", "title", "url", "status", "content_type", "truncated"]).to_pylist()
    assert first["text"].split("\n") == ["unbreak é", "", "two"]
    assert list(first.values())[:2] == ["urn:http://b/", 4]
    assert list(first.values())[3:] == ["Ü & T", "http://b/", 404, "text/html", "length"]
    assert list(second.values()) == ["urn:http://wet/", 6, "Tür", None, "http://wet/", None, "text/plain", None]
    assert got.documents["date"].to_pylist()[0].isoformat() == "2026-01-02T03:04:05+00:00"
    assert [unit.stop_row for unit in got.units] == [7]
    got = read_selected(
        tmp_path, filter="status = 200 or content_type = 'text/plain'", id_column=None, metadata_columns=[], metadata_types={}
    )
    assert got.documents.select(["row", "text"]).to_pylist() == [{"row": 6, "text": "Tür"}]
    assert [unit.stop_row for unit in got.units] == [7]


def test_each_record_of_a_compressed_file_is_a_member(tmp_path, read):
    (tmp_path / "a.warc.gz").write_bytes(b"".join(gzip.compress(page(b"<p>x", url=f"http://{n}/")) for n in range(5)))
    assert read(tmp_path).texts == ["x"] * 5


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ("é".encode("utf-8-sig"), "text/html; charset=latin-1"),
        ("é".encode("utf-16"), "text/html"),
        ("é".encode("cp1252"), "text/html; charset=ISO-8859-1"),
        (b"<meta charset=koi8-r>" + "é".encode("cp1252"), "text/html; charset=latin1"),
        (b"<meta http-equiv=Content-Type content='text/html; charset=windows-1252'>\xe9", "text/html"),
        ("é".encode(), "text/html; charset=no-such-charset"),
        ("é".encode(), "text/html"),
    ],
)
def test_a_page_is_decoded_as_a_browser_does(write_file, read, body, content_type):
    assert read(write_file("a.warc", page(body, content_type))).texts == ["é"]


def test_chunks_and_compression_of_a_page_are_undone(write_file, read):
    packed = gzip.compress(b"<p>packed")
    chunked = b"%x\r\n%b\r\n%x;a=b\r\n%b\r\n0\r\n\r\n" % (5, packed[:5], len(packed) - 5, packed[5:])
    fields = ["Content-Encoding: gzip", "Transfer-Encoding: chunked"]
    data = page(chunked, fields=fields) + page(brotli.compress(b"<p>br"), fields=["Content-Encoding: br"])
    assert read(write_file("a.warc", data)).texts == ["packed", "br"]


def test_a_page_that_cannot_be_decoded_is_quarantined(write_file, read):
    gzipped = ["Content-Encoding: gzip"]
    records = [
        page(b"\xff"),
        page(gzip.compress(b"<p>cut off" * 9)[:-9], fields=gzipped),
        page(b"?", fields=["Content-Encoding: zstd"]),
        page(b"5\r\nab", fields=["Transfer-Encoding: chunked"]),
        page(gzip.compress(b"<p>" + b"x" * 2000), fields=gzipped),
        page(b"x" * 2000),
    ]
    got = read(write_file("a.warc", b"".join(records) + page(b"<p>good") * 6), max_record_bytes=1000)
    assert got.reasons == [*enumerate(["undecodable", *["malformed"] * 3, "too_large", "too_large"])]
    assert "Content-Encoding zstd is not read" in got.quarantined["excerpt"][2].as_py()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data[:-12], "is cut off: 8 of its bytes are missing"),
        (lambda data: data + b"garbage", "no record begins with b'garbage'"),
        (lambda data: data.replace(b"Content-Length", b"Kontent-Length"), "states no length"),
        (lambda data: data + b"WARC/1.0\r\nContent-Length: 0\r\n", "is cut off, or states no length"),
    ],
)
def test_a_damaged_record_is_a_source_error(write_file, read, change, problem):
    data = page(b"<p>good") * 3
    with pytest.raises(SourceError, match=problem):
        read(write_file("a.warc", change(data)))


def test_a_file_of_pages_that_do_not_decode_is_a_source_error_that_names_the_first(write_file, read):
    with pytest.raises(SourceError, match=r"2 of 3 records cannot be parsed \(the first is record 1: "):
        read(write_file("a.warc", record("warcinfo") + page(b"\xff") * 2 + page(b"<p>good")))
