"""The demo corpus: complete, unique, and the same bytes every time."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedder.core.errors import StorageError
from embedder.demo.corpus import SHARDS, Corpus, write_corpus
from jobs.demo import main

ROOT = Path(__file__).parents[2]
COLUMNS = ["id", "title", "text", "module", "kind", "url"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "corpus"


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return write_corpus(folder)


@pytest.fixture(scope="module")
def documents(corpus: Corpus, folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for name in SHARDS:
        if name.endswith(".parquet"):
            found += pq.read_table(folder / name).to_pylist()
        else:
            found += [json.loads(line) for line in gzip.decompress((folder / name).read_bytes()).decode().splitlines()]
    return found


def test_corpus_has_thousands_of_documents_in_shards_of_both_formats(corpus: Corpus, folder: Path, documents: list[dict[str, str]]) -> None:
    assert len(documents) == corpus.documents
    assert 4_000 < corpus.documents < 10_000
    assert sorted(path.name for path in folder.iterdir()) == sorted(corpus.shard_bytes) == sorted(SHARDS)
    assert all((folder / name).stat().st_size == num_bytes for name, num_bytes in corpus.shard_bytes.items())
    assert {Path(name).suffix for name in SHARDS} == {".gz", ".parquet"}


def test_every_document_has_every_field_and_an_id_of_its_own(documents: list[dict[str, str]]) -> None:
    assert all(list(document) == COLUMNS for document in documents)
    assert len({document["id"] for document in documents}) == len(documents)
    assert all(len(document["text"]) >= 30 and document["title"].startswith(document["id"]) for document in documents)
    assert {document["kind"] for document in documents} == {"module", "class", "function", "method", "attribute", "data"}
    assert all(" at 0x" not in document["title"] for document in documents)


@pytest.mark.parametrize(
    ("name", "kind", "page"),
    [
        ("os.path.split", "function", "os.path.html#os.path.split"),
        ("os.open", "function", "os.html#os.open"),
        ("open", "function", "functions.html#open"),
        ("str.split", "method", "stdtypes.html#str.split"),
        ("StopIteration", "class", "exceptions.html#StopIteration"),
        ("json", "module", "json.html#module-json"),
        ("json.JSONDecoder", "class", "json.html#json.JSONDecoder"),
        ("concurrent.futures.ThreadPoolExecutor", "class", "concurrent.futures.html#concurrent.futures.ThreadPoolExecutor"),
        ("datetime.datetime.strptime", "method", "datetime.html#datetime.datetime.strptime"),
    ],
)
def test_objects_have_their_documented_names(documents: list[dict[str, str]], name: str, kind: str, page: str) -> None:
    found = [(document["kind"], document["url"].rpartition("/")[2]) for document in documents if document["id"] == name]
    assert found == [(kind, page)]


def test_each_object_appears_once_under_its_public_name(documents: list[dict[str, str]]) -> None:
    names = {document["id"] for document in documents}
    assert not names & {
        "posixpath.split",
        "ntpath.split",
        "posix.open",
        "io.open",
        "json.decoder.JSONDecoder",
        "asyncio.tasks.gather",
        "os.error",
    }
    assert not any(part.startswith("_") for name in names - {"__future__"} for part in name.removeprefix("__future__.").split("."))


def test_values_without_a_docstring_do_not_get_that_of_their_type(documents: list[dict[str, str]]) -> None:
    assert not {document["id"] for document in documents} & {"os.O_APPEND", "string.ascii_letters", "socket.AF_INET"}


def test_writing_again_leaves_identical_files_untouched(corpus: Corpus, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_corpus(folder) == corpus
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.real
def test_bytes_do_not_depend_on_hash_seed_or_working_folder_and_importing_prints_nothing(tmp_path: Path) -> None:
    written = []
    for seed, cwd in (("1", ROOT), ("2", tmp_path)):
        command = [sys.executable, "-m", "jobs.demo", str(tmp_path / seed)]
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=True, timeout=60)
        assert done.stderr == ""
        assert len(done.stdout.splitlines()) == len(SHARDS) + 1
        written.append({path.name: path.read_bytes() for path in (tmp_path / seed / "corpus").iterdir()})
    changed = [name for name in SHARDS if written[0][name] != written[1][name]]
    assert changed == []


def test_job_prints_shards_and_totals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    *shards, total = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).name for line in shards] == list(SHARDS)
    assert "documents in 8 shards" in total


@pytest.mark.parametrize("place", ["file", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"{place}/corpus: cannot be written"):
        main([str(tmp_path / place)])


def test_modules_that_cannot_be_imported_are_named(corpus: Corpus) -> None:
    if sys.platform != "win32":
        assert "winreg" in corpus.missing_modules
