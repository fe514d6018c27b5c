"""The same documents give the same table through every format; each also takes folders, a filter, damage and a wrong column alike."""

import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest

from embedder.benchmark.source_files import COLUMNS, WRITERS
from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, SourceError
from embedder.core.schema import DOCUMENTS as DOCUMENTS_SCHEMA
from embedder.core.units import Task
from embedder.source.columns import with_context
from embedder.source.documents import read_units
from embedder.source.formats.registry import FORMATS, find_encoding
from embedder.source.selection import select_shards
from embedder.source.shards import list_shards
from tests.source.conftest import COMPRESS, Result

TEXTS = [
    "plain",
    "zwei Wörter\tund 東京 👩‍👩‍👧",
    'quotes "and", commas; <b>no</b> markup',
    " blanks around ",
    "",
    "line one\nline two",
    "x" * 70_000,
]
START = datetime(2026, 1, 1, tzinfo=UTC)
DOCUMENTS = pa.table(
    [
        [f"urn:uuid:{number:032x}" for number in range(len(TEXTS))],
        TEXTS,
        [f"https://example.org/{number}?q=a%20b" for number in range(len(TEXTS))],
        [START + timedelta(days=number) for number in range(len(TEXTS))],
    ],
    schema=COLUMNS,
)
SETTINGS = {"id_column": "id", "metadata_columns": ["url", "date"], "metadata_types": {"date": "timestamp"}}
BINARY = [name for name in WRITERS if find_encoding(name).format.is_binary or name == "a.warc"]


def write_text_files(documents: pa.Table, path: Path) -> None:
    """Write a file a document, whose folders give its other columns."""
    for each in documents.to_pylist():
        columns = {name: quote(each[name] if name != "date" else each[name].isoformat(), safe="") for name in ("id", "url", "date")}
        folder = path.parent.joinpath(*(f"{name}={value}" for name, value in columns.items()))
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(each["text"], newline="")


EVERY = {**WRITERS, "a.txt": write_text_files}


@pytest.fixture
def write(tmp_path):
    def write_documents(name: str, folder: str = "source", documents: pa.Table = DOCUMENTS) -> Path:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        EVERY[name](documents, tmp_path / folder / name)
        return tmp_path / folder / name

    return write_documents


def read(folder: Path, template: str | None = None, **settings) -> Result:
    source = with_context(SourceConfig(uri=str(folder), **{**SETTINGS, **settings}), template)
    listing, metadata = select_shards(source, list_shards(source))
    return Result(list(read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, metadata)))


def test_every_format_is_tested():
    assert {find_encoding(name).format for name in EVERY} == set(FORMATS.values()) - {FORMATS["lance"], FORMATS["postgres"]}, (
        "a fragment of a data set of Lance is no file"
    )


@pytest.mark.parametrize("name", EVERY)
def test_the_same_documents_give_the_same_table(write, name):
    got = read(write(name).parent)
    columns = ["doc_id", "text", "url", "date"]
    assert got.documents.select(columns).sort_by("doc_id").to_pydict() == {
        key: [value for text, value in zip(TEXTS, DOCUMENTS[column].to_pylist(), strict=True) if text]
        for key, column in zip(columns, DOCUMENTS.schema.names, strict=True)
    }
    assert got.documents["date"].type == pa.timestamp("us", "UTC")
    assert got.quarantined.select(["doc_id", "reason"]).to_pylist() == [{"doc_id": f"urn:uuid:{4:032x}", "reason": "empty_text"}]


@pytest.mark.parametrize("name", EVERY)
def test_the_columns_of_a_template_are_read_as_text_by_their_names_or_keys(write, name):
    got = read(write(name).parent, template="{link|none}, {date}: {chunk}", metadata_columns={"link": "url"}, metadata_types={}).documents
    assert got.drop_columns(list(DOCUMENTS_SCHEMA.names)).column_names == ["link", "context:link|", "context:date"]
    assert got["context:link|"].to_pylist() == got["link"].to_pylist()
    assert [text[:10] for text in sorted(got["context:date"].to_pylist())] == [
        f"{START + timedelta(days=number):%Y-%m-%d}" for number, text in enumerate(TEXTS) if text
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_may_be_without_a_column_that_a_template_alone_reads(write, tmp_path, name):
    write(name)
    (tmp_path / "source" / "other.jsonl").write_text('{"id": "other", "text": "text", "topic": "Topic"}\n')
    wanted = {"metadata_columns": [], "metadata_types": {}}
    got = read(tmp_path / "source", "{topic|none}: {chunk}", **wanted).documents
    topics = dict(zip(got["doc_id"].to_pylist(), got["context:topic|"].to_pylist(), strict=True))
    assert len(topics) == len(TEXTS)  # one is empty, one is the other file's
    assert {doc_id: topic for doc_id, topic in topics.items() if topic is not None} == {"other": "Topic"}
    with pytest.raises(ConfigError, match=r"chunking.template: {heading}: .* has no column 'heading'"):
        read(tmp_path / "source", "{heading|none}: {chunk}", **wanted)


@pytest.mark.parametrize("name", [each for each in WRITERS if each != "a.jsonl"])
def test_a_column_without_a_default_is_wanted_of_every_format(write, tmp_path, name):
    write(name)
    (tmp_path / "source" / "other.jsonl").write_text('{"id": "other", "text": "text", "topic": "Topic"}\n')
    with pytest.raises(ConfigError, match=r"chunking.template: {topic}: .* has no column 'topic'"):
        read(tmp_path / "source", "{topic}: {chunk}", metadata_columns=[], metadata_types={})


@pytest.mark.parametrize("name", ["a.parquet", "a.orc", "a.arrow", "a.csv", "a.tsv", "a.duckdb"])
def test_a_column_without_a_default_is_wanted_of_every_file(write, tmp_path, name):
    write(name)
    write(name, "source/without", DOCUMENTS.drop_columns(["url"]))
    wanted = {"metadata_columns": [], "metadata_types": {}}
    assert read(tmp_path / "source", "{url|none}: {chunk}", **wanted).documents["context:url|"].null_count == len(TEXTS) - 1
    for template in ("{url}: {chunk}", "{url|none} {url}: {chunk}"):
        with pytest.raises(SourceError, match=r"without/a.*no column 'url' .*; set a default in chunking.template, such as {url\|none}"):
            read(tmp_path / "source", template, **wanted)
    with pytest.raises(SourceError, match=r"without/a.*no column 'url' .*; set source.filter"):
        read(tmp_path / "source", filter="url != 'x'", **wanted)


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_and_a_filter_give_columns_and_choose_records(write, tmp_path, name):
    for folder in ("lang=de", "lang=en"):
        write(name, folder)
    got = read(tmp_path, filter="lang = 'de' and date < '2026-01-03'", metadata_columns=["lang", "date"])
    assert got.documents["lang"].to_pylist() == ["de", "de"]
    assert got.documents["row"].to_pylist() == [0, 1]
    assert sum(unit.stop_row - unit.first_row for unit in got.units) == len(TEXTS)


@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_numbered_through_all_batches(write, name):
    count = 5_000
    numbers = range(count)
    columns = [[f"urn:{n}" for n in numbers], [f"text {n}" for n in numbers], ["u"] * count, [START] * count]
    got = read(write(name, documents=pa.table(columns, schema=COLUMNS)).parent)
    assert got.documents["row"].to_pylist() == list(numbers)
    assert got.texts == columns[1]


@pytest.mark.parametrize("name", WRITERS)
def test_a_wrong_column_is_named_with_those_found(write, name):
    path = write(name)
    with pytest.raises(ConfigError, match=r"text_columns=\['body'\]: .* has no column 'body' \(found: (id, )?text, "):
        read(path, text_columns="body")
    source = SourceConfig(uri=str(path), text_columns="body")
    task = Task("0" * 16, "0" * 32, list_shards(source).shards)
    with pytest.raises(SourceError, match=r"no (column|record has a key) 'body' \(found: (id, )?text, .*\); set source.text_columns"):
        list(read_units(task, source, pa.schema([])))


@pytest.mark.parametrize("name", WRITERS)
def test_a_long_text_is_quarantined(write, name):
    got = read(write(name).parent, max_record_bytes=60_000)
    assert (6, "too_large") in got.reasons
    assert len(got.documents) == len(TEXTS) - 2


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.warc"])
@pytest.mark.parametrize("codec", [".gz", ".zst"])
def test_a_compressed_file_is_read(write, name, codec):
    path = write(name)
    path.with_name(name + codec).write_bytes(COMPRESS[codec](path.read_bytes()))
    path.unlink()
    assert len(read(path.parent).documents) == len(TEXTS) - 1


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("other", ["a.parquet", "a.orc", "a.arrow", "a.avro", "a.csv"])
def test_the_bytes_of_another_format_are_a_source_error(write, name, other):
    if find_encoding(name) == find_encoding(other):
        return
    data = write(other, "other").read_bytes()
    path = write(name)
    path.write_bytes(data)
    kinds = {
        "a.orc": "an ORC file",
        "a.avro": "an Avro file",
        "a.arrow": "an Arrow file",
        "a.parquet": "a parquet file",
        "a.csv": "it does not begin",
    }
    with pytest.raises(SourceError, match="Parquet magic bytes" if name == "a.parquet" else kinds[other]):
        read(path)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_a_source_error(write, name, share):
    path = write(name)
    data = path.read_bytes()
    path.write_bytes(data[: min(int(len(data) * share), len(data) - 5)])
    with pytest.raises(SourceError, match=rf"{name}: cannot be read to its end"):
        read(path)


@pytest.mark.parametrize("name", BINARY)
def test_a_flipped_bit_is_never_worse_than_a_source_error(write, name):
    path, draw = write(name), random.Random(0)
    data = path.read_bytes()
    for _ in range(25):
        damaged = bytearray(data)
        # most bytes are those of the longest text
        damaged[draw.choice([draw.randrange(1500), -draw.randrange(1, 1500), draw.randrange(len(data))]) % len(data)] ^= (
            1 << draw.randrange(8)
        )
        path.write_bytes(damaged)
        with suppress(SourceError, ConfigError):
            read(path)
