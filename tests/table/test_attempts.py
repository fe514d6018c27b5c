import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.core.storage import Location
from embedder.table.attempts import ATTEMPTS_FOLDER, MOST_POISON_DOCUMENTS, Attempts, isolate_poison_documents, split_range


@pytest.fixture(autouse=True, scope="module")
def _no_pause() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedder.table.attempts.PAUSE_SECONDS", 0.0)
        yield


class DeathError(Exception):
    """Simulates a worker's death: never caught, and the next worker starts over."""


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


def marks(folder: Location) -> set[str]:
    return {path.name for path in Path(folder.uri, ATTEMPTS_FOLDER).glob("*")}


def test_attempts_are_counted_across_independent_workers(folder: Location) -> None:
    first, second = Attempts.listed(folder), Attempts.listed(folder)
    assert [first.begin("unit"), second.begin("unit"), Attempts.listed(folder).begin("unit")] == [1, 2, 3]
    assert Attempts.listed(folder).failed("unit") == 3
    assert Attempts.listed(folder).failed("another") == 0


def test_a_finished_attempt_leaves_no_mark(folder: Location) -> None:
    Attempts.listed(folder).begin("unit")
    attempts = Attempts.listed(folder)
    attempts.end("unit", attempts.begin("unit"))
    assert marks(folder) == set()


def test_forgetting_a_unit_leaves_the_marks_of_others(folder: Location) -> None:
    attempts = Attempts.listed(folder)
    for name in ("a.parquet", "a.parquet.0-5", "b.parquet"):
        attempts.begin(name)
    attempts.forget("a.parquet")
    assert marks(folder) == {"b.parquet.1"}


def test_a_document_that_runs_beside_this_one_are_embedding_is_not_poison(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [Attempts.listed(folder) for _ in range(3)]
    for other in others:
        other.begin("unit.0-1")
    monkeypatch.setattr(time, "sleep", lambda _: Attempts(folder).end("unit.0-1", 3))  # they end meanwhile
    tried: list[range] = []
    assert isolate_poison_documents("unit", 1, Attempts.listed(folder), 3, tried.append) == []
    assert tried == [range(1)]


def run_until_done(
    folder: Location, num_documents: int, poison_documents: set[int], max_attempts: int
) -> tuple[list[int], list[range], int]:
    """Return the poison documents found, the ranges that the last worker embedded, and the number of deaths."""
    deaths = 0
    while True:
        embedded: list[range] = []

        def try_range(documents: range, embedded: list[range] = embedded) -> None:
            if poison_documents.intersection(documents):
                raise DeathError
            embedded.append(documents)

        try:
            return isolate_poison_documents("unit", num_documents, Attempts.listed(folder), max_attempts, try_range), embedded, deaths
        except DeathError:
            deaths += 1


@pytest.mark.real
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 600), st.data())
def test_exactly_the_poison_documents_are_found_and_all_others_embedded_once(
    tmp_path_factory: pytest.TempPathFactory, num_documents: int, data: st.DataObject
) -> None:
    poison_documents = data.draw(st.sets(st.integers(0, num_documents - 1), max_size=3))
    folder = Location(str(tmp_path_factory.mktemp("table")))
    found, embedded, deaths = run_until_done(folder, num_documents, poison_documents, 2)
    assert found == sorted(poison_documents)
    assert sorted(number for documents in embedded for number in documents) == sorted(set(range(num_documents)) - poison_documents)
    assert deaths <= 5 * len(poison_documents), "600 documents are split to single ones in three levels, and the last level is tried twice"


def test_isolation_stops_early_if_every_document_kills_its_worker(folder: Location) -> None:
    found, embedded, _ = run_until_done(folder, 100, set(range(100)), 1)
    assert len(found) == MOST_POISON_DOCUMENTS
    assert embedded == []


@pytest.mark.parametrize("whole", [range(1), range(5, 6), range(16), range(17), range(3, 8192)])
def test_split_ranges_cover_the_whole(whole: range) -> None:
    assert [number for documents in reversed(split_range(whole)) for number in documents] == list(whole)
