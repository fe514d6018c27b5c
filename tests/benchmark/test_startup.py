"""A short run's time beyond Ray's start and imports, in real processes."""

import pytest

from embedder.benchmark.startup import Start, measure_start, run_floor, time_module
from embedder.core.errors import EmbedderError
from embedder.demo.corpus import Document

DOCUMENTS = [Document(id=f"m.f{n}", title=f"f{n}()", text=f"Do the {n}th thing.", module="m", kind="function", url="") for n in range(3)]


def test_figures_are_laid_out_with_their_range() -> None:
    start = Start(200, 14.0, 11.5, 2.8, 6.1, ((13.0, 11.0, 6.0), (14.0, 11.2, 6.1), (16.0, 12.0, 6.2)))
    assert start.rows() == [
        ("200 documents on Ray", " 14.0 s, median of 3 from 13.0 to 16.0"),
        ("Ray and imports alone", " 11.5 s"),
        ("ours", "  2.8 s, 20% of the whole"),
        ("in one process, without Ray", "  6.1 s"),
    ]


def test_a_process_that_fails_is_not_a_figure() -> None:
    with pytest.raises(EmbedderError, match=r"exit code 1: .*No module named"):
        time_module("embedder.no_such_module")


@pytest.mark.ray
@pytest.mark.slow
def test_the_floor_sends_a_row_through_a_graph_of_the_jobs_shape(ray_session: None) -> None:
    run_floor()


@pytest.mark.ray
@pytest.mark.slow
def test_the_job_and_its_floor_are_both_run(minilm: str) -> None:
    start = measure_start(minilm, DOCUMENTS, 1)
    ((job, floor, here),) = start.rounds
    assert (start.documents, start.seconds, start.floor_seconds, start.ours_seconds) == (3, job, floor, job - floor)
    assert start.here_seconds == here
    assert min(job, floor) > 1, "neither is less than Ray's start"
