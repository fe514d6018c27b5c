"""A corpus that can be edited, and a table beside it, on local disk or on a real S3 server."""

import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from embedder.config.embed import EmbedConfig
from embedder.core.storage import Location, Store
from embedder.run.embed import run_embed
from embedder.run.prepare import prepare_run
from embedder.run.summary import Summary
from embedder.table.commits import open_delta

on_s3 = pytest.mark.parametrize("location", [pytest.param("s3", marks=pytest.mark.s3)], indirect=True)
"""For tests of several runs, whose result is the same on a local disk."""

WORDS = ("river", "engine", "violin", "harbor", "lantern", "proof", "granite", "orchard", "copper", "whale", "signal", "bread")


def sentences(number: int, words: int) -> str:
    """Return a text of so many words that is unique to the number."""
    return " ".join(WORDS[(number * 7 + place * place + place // 3) % len(WORDS)] for place in range(words)) + f" {number}"


def documents(first: int, count: int) -> list[dict[str, Any]]:
    """Return documents of mixed length, a few of them several chunks long at 64 tokens."""
    return [
        {
            "id": f"d{number}",
            "text": sentences(number, 5 + 37 * (number % 5)),
            "topic": WORDS[number % 3],
            "meta": {"url": f"http://x/{number}"},
        }
        for number in range(first, first + count)
    ]


@dataclass(frozen=True)
class Corpus:
    """A folder of shards that tests write, overwrite and remove."""

    uri: str

    def put(self, name: str, rows: Sequence[Any]) -> None:
        """Write a shard in the format of its suffix; str and bytes are raw lines."""
        if name.endswith(".parquet"):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(list(rows)), buffer, row_group_size=7)
            data = buffer.getvalue()
        else:
            lines = [row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows]
            data = b"".join(line + b"\n" for line in lines)
        self.put_bytes(name, gzip.compress(data, mtime=0) if name.endswith(".gz") else data)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Write an object as it is."""
        store = Store(f"{self.uri}/{name}")
        store.fs.makedirs(store.fs._parent(store.path), exist_ok=True)
        store.fs.pipe_file(store.path, data)

    def remove(self, name: str) -> None:
        """Remove a shard."""
        Store(f"{self.uri}/{name}").remove()


@dataclass(frozen=True)
class Site:
    """A corpus, the table made from it, and the model."""

    corpus: Corpus
    table_uri: str
    model: str
    depth: int | None = None

    def config(self, **sections: dict[str, Any]) -> EmbedConfig:
        """Return the site's config; sections add settings or override them."""
        values: dict[str, dict[str, Any]] = {
            "source": {"uri": self.corpus.uri, "id_column": "id", "metadata_columns": ["topic", "meta.url"], "rows_per_unit": 10},
            "chunking": {"max_tokens": 64, "overlap_tokens": 8},
            "embedding": {"model": self.model, "depth": self.depth},
            "compute": {"dtype": "float32", "backend": "torch"},
            "output": {"uri": self.table_uri},
        }
        for name, section in sections.items():
            values[name] = values[name] | section
        return EmbedConfig.model_validate(values)

    def embed(self, **sections: dict[str, Any]) -> Summary:
        """Run the job in this process."""
        return run_embed(prepare_run(self.config(**sections)))

    def delta(self, version: int | None = None) -> DeltaTable:
        """Open the table."""
        return open_delta(Location(self.table_uri), version)

    def rows(self, version: int | None = None) -> list[dict[str, Any]]:
        """Return all rows, in order of document and chunk."""
        rows = self.delta(version).to_pyarrow_table().to_pylist()
        return sorted(rows, key=lambda row: (row["shard"], row["row"], row["chunk"]))

    def quarantine(self) -> list[dict[str, Any]]:
        """Return all quarantined records."""
        return open_delta(Location(f"{self.table_uri}/_quarantine")).to_pyarrow_table().to_pylist()


def fill(site: Site) -> None:
    """Write three shards of different formats, 36 documents."""
    site.corpus.put("a.jsonl.gz", documents(0, 12))
    site.corpus.put("b.parquet", documents(12, 12))
    site.corpus.put("deep/c.jsonl", documents(24, 12))


def vectors_of(rows: list[dict]) -> np.ndarray:
    """Return the rows' vectors as one array of [rows, dim]."""
    return np.array([row["embedding"] for row in rows], np.float32)


@pytest.fixture
def make_site(minilm: str, request: pytest.FixtureRequest) -> Callable[[str], Site]:
    """Make a site below a local or remote folder, of the model's first layers where the test's module says DEPTH: they take less time."""
    depth = getattr(request.module, "DEPTH", None)
    return lambda root: Site(Corpus(f"{root}/corpus"), f"{root}/table", minilm, depth)


@pytest.fixture
def site(location: str, make_site: Callable[[str], Site]) -> Site:
    """An empty site."""
    return make_site(location)


@pytest.fixture
def local_site(tmp_path: Path, make_site: Callable[[str], Site]) -> Site:
    """An empty site on local disk."""
    return make_site(str(tmp_path))


@pytest.fixture
def ray_site(local_site: Site, ray_session: None) -> Site:
    """An empty site on local disk, with Ray running."""
    return local_site


@pytest.fixture
def repository() -> str:
    """The folder that jobs are run in."""
    return str(Path(__file__).parents[2])
