"""Documents → one file of each format that can be read, as other tools write them."""

import csv
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq

COLUMNS = pa.schema([("id", pa.string()), ("text", pa.string()), ("url", pa.string()), ("date", pa.timestamp("us", "UTC"))])
"""Columns of the documents; those that a WARC record has too."""
_AVRO = {
    "type": "record",
    "name": "Document",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "text", "type": "string"},
        {"name": "url", "type": ["null", "string"]},
        {"name": "date", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}


def _write_arrow(documents: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), documents.schema) as writer:
        writer.write_table(documents, max_chunksize=10_000)


def _write_stream(documents: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), documents.schema) as writer:
        writer.write_table(documents, max_chunksize=10_000)


def _write_avro(documents: pa.Table, path: Path) -> None:
    import fastavro  # an extra

    with path.open("wb") as file:
        fastavro.writer(file, _AVRO, documents.to_pylist(), codec="deflate")


def _write_sqlite(documents: pa.Table, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE documents (id TEXT, text TEXT, url TEXT, date TEXT)")
        rows = ((each | {"date": each["date"].isoformat()}).values() for each in documents.to_pylist())
        connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", map(tuple, rows))


def _write_duckdb(documents: pa.Table, path: Path) -> None:
    import duckdb  # an extra

    with duckdb.connect(str(path)) as connection:
        connection.register("source", documents)
        connection.execute("CREATE TABLE documents AS FROM source")


def _write_jsonl(documents: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(each | {"date": each["date"].isoformat()}, ensure_ascii=False) + "\n" for each in documents.to_pylist())


def _write_csv(delimiter: str) -> Callable[[pa.Table, Path], None]:
    def write(documents: pa.Table, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerow(documents.schema.names)
            writer.writerows((each | {"date": each["date"].isoformat()}).values() for each in documents.to_pylist())

    return write


def _write_warc(documents: pa.Table, path: Path) -> None:
    with path.open("wb") as file:
        for each in documents.to_pylist():
            body = each["text"].encode()
            http = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            fields = {"WARC-Type": "response", "WARC-Record-ID": f"<{each['id']}>", "WARC-Date": f"{each['date']:%Y-%m-%dT%H:%M:%SZ}"}
            fields |= {"WARC-Target-URI": each["url"], "Content-Type": "application/http; msgtype=response"}
            fields |= {"Content-Length": str(len(http) + len(body))}
            head = "WARC/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
            file.write(head.encode() + http + body + b"\r\n\r\n")


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "a.parquet": pq.write_table,
    "a.orc": lambda documents, path: pa.orc.write_table(documents, str(path), compression="zstd"),
    "a.arrow": _write_arrow,
    "stream.arrow": _write_stream,
    "a.avro": _write_avro,
    "a.sqlite": _write_sqlite,
    "a.duckdb": _write_duckdb,
    "a.jsonl": _write_jsonl,
    "a.csv": _write_csv(","),
    "a.tsv": _write_csv("\t"),
    "a.warc": _write_warc,
}
"""By the name of the file to write."""
