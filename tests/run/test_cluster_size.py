"""The size of a cluster follows from measured rates."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedder.core.errors import CommitError, ConfigError
from embedder.run.cluster_size import Document, Fleet, describe_size, estimate_seconds, learn_document, round_down, size_fleet
from jobs.size import main
from tests.tables import MadeTable

DOCUMENT = Document(
    tokens=100, chunks=1, text_bytes=400, source_bytes=200, part_bytes=2_000, read_seconds=0.0001, write_seconds=0.00002, vector_bytes=1536,
    basis="a run",
)  # fmt: skip
FLEET = Fleet(gpus=64, gpus_per_node=8, tokens_per_second=100_000, documents=1e9, unit_seconds=10)


def run(tokens: int, reused: int = 0, **more: Any) -> dict[str, Any]:
    stats = {"documents": 110, "quarantined": 10, "chunks": 200, "tokens": tokens, "reused": reused, "text_bytes": 40_000}
    spec = {"dim": 256, "quantization": "int8"}
    seconds = {"read_seconds": 2.0, "write_seconds": 0.5}
    return {"run_id": f"r{tokens}", "stats": stats | seconds, "spec": spec, "source_bytes": 20_000, "bytes_added": 100_000} | more


def test_rates_come_from_the_run_that_embedded_the_most() -> None:
    found = learn_document([run(50), run(5_000), run(9_000, reused=3), {**run(20_000), "source_bytes": 0}])
    assert found.basis.startswith("run r5000: 100 documents, 5,000 tokens")
    assert (found.tokens, found.chunks, found.text_bytes, found.source_bytes) == (50, 2, 400, 200)
    assert (found.part_bytes, found.read_seconds, found.write_seconds, found.vector_bytes) == (1000, 0.02, 0.005, 256)


def test_a_table_without_a_measured_run_is_refused() -> None:
    with pytest.raises(CommitError, match=r"run jobs\.embed on a sample"):
        learn_document([run(50, reused=1)])


def test_the_job_reads_the_rates_of_the_tables_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MadeTable(str(tmp_path / "table")).follow({"large": [("a", "one two", "x")]}, record=run(5_000))
    config = tmp_path / "run.yaml"
    config.write_text(f"source: {{uri: ./in}}\nembedding: {{model: m}}\noutput: {{uri: {tmp_path}/table}}\n")
    asked = [str(config), "--gpus", "4", "--tokens-per-second", "50000", "--documents", "1e6"]
    assert main(asked) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["measured"].strip() == "run r5000: 100 documents, 5,000 tokens"
    assert "source.rows_per_unit=10000" in lines["unit"]
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"]["rows_per_unit"] == 10_000
    with pytest.raises(ConfigError, match="more than 0"):
        main([*asked[:-1], "0"])


def test_the_size_by_hand() -> None:
    size = size_fleet(DOCUMENT, FLEET)
    # 1,000 documents/s a GPU
    assert (size.rows_per_unit, size.num_units) == (10_000, 100_000)
    assert size.unit_seconds == pytest.approx((1.0, 10.0, 0.2))
    assert size.readers == pytest.approx(64 / 10 * 1.0 / 0.8)
    assert size.cpus_per_gpu(64) == pytest.approx(1 + 0.125 + 0.25 * 0.025)
    assert size.units_per_row == 4
    assert size.driver_share == pytest.approx(6.4 * 0.025 / 4)
    assert size.hours == pytest.approx(1e9 / 64_000 / 3600, rel=0.02)
    assert size.busy_share > 0.98
    text = dict(describe_size(DOCUMENT, FLEET, size))
    assert text["unit"].startswith("source.rows_per_unit=10000: 1.0 s to read, 10.0 s to encode")
    assert text["storage"].endswith("13 MB/s in, 128 MB/s out")


def test_a_small_corpus_is_split_into_units_for_every_encoder() -> None:
    size = size_fleet(DOCUMENT, replace(FLEET, documents=1e7))
    assert size.num_units >= 64 * 20
    assert size.busy_share > 0.9


def test_units_are_large_enough_for_the_driver() -> None:
    size = size_fleet(DOCUMENT, replace(FLEET, documents=1e5))
    assert size.driver_share <= 0.52
    assert size.num_units < 64


def test_many_gpus_take_rows_of_several_units_which_spare_the_driver_and_fill_the_object_store() -> None:
    few, many = (size_fleet(DOCUMENT, replace(FLEET, gpus=gpus, documents=1e10, unit_seconds=5.0)) for gpus in (32, 256))
    assert (few.units_per_row, many.units_per_row) == (1, 16)
    assert many.driver_share == pytest.approx(few.driver_share / 2)
    assert many.store_bytes_per_node == pytest.approx(16 * few.store_bytes_per_node)
    assert many.hours > few.hours / 8


def test_a_faster_gpu_takes_larger_units_and_more_readers() -> None:
    slow, fast = size_fleet(DOCUMENT, FLEET), size_fleet(DOCUMENT, replace(FLEET, tokens_per_second=400_000))
    assert fast.rows_per_unit == 4 * slow.rows_per_unit
    assert fast.readers == pytest.approx(4 * slow.readers)
    assert (slow.units_per_row, fast.units_per_row) == (4, 1), "a row takes an encoder about as long"
    assert fast.store_bytes_per_node > slow.store_bytes_per_node
    assert fast.driver_share == pytest.approx(4 * slow.driver_share)


@pytest.mark.parametrize(
    ("seconds", "workers", "expected"),
    [
        ((10.0, 10.0), (8, 16), 3_000 * 10 / 8 + 20),  # half of the readers are missing
        ((10.0, 10.0), (32, 16), 3_000 * 10 / 16 + 20),
        ((0.05, 0.1, 0.025), (64, 64, 1), 3_000 * 0.025 + 0.175),  # the driver is the slowest
    ],
)
def test_a_run_takes_the_time_of_its_slowest_stage_and_one_units_way(
    seconds: tuple[float, ...], workers: tuple[int, ...], expected: float
) -> None:
    assert estimate_seconds(3_000, seconds, workers) == pytest.approx(expected)


def test_a_setting_has_two_digits() -> None:
    assert [round_down(number) for number in (7.9, 45.2, 123.4, 98_765)] == [7, 45, 120, 98_000]


def test_the_estimated_bytes_between_stages_are_those_of_a_real_unit() -> None:
    from embedder.core.schema import DOCUMENTS
    from embedder.pipeline.rows import to_ipc
    from embedder.text.chunking import CHUNKS

    count, text = 500, "word " * 120
    columns: dict[str, Any] = {
        "doc_id": [f"os.path.name{number}" for number in range(count)],
        "text": [text] * count,
        "content_hash": ["0" * 32] * count,
        "shard": ["s3://bucket/corpus/shard.jsonl.gz"] * count,
        "row": range(count),
    }
    documents = pa.table({field.name: pa.array(columns[field.name]).cast(field.type) for field in DOCUMENTS})
    token_ids = pa.array([np.arange(150)] * count).cast(CHUNKS.field("token_ids").type)
    chunks = pa.table({each.name: token_ids if each.name == "token_ids" else pa.array([0] * count).cast(each.type) for each in CHUNKS})
    real = len(to_ipc(documents)) + len(to_ipc(chunks))
    estimated = count * replace(DOCUMENT, tokens=150, text_bytes=len(text)).prepared_bytes
    assert estimated == pytest.approx(real, rel=0.1)
