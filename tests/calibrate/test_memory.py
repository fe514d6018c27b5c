"""What a calibration needs of memory and disk is known, and compared with the machine's, before a text is encoded."""

import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedder.calibrate.collect import Split
from embedder.calibrate.config import AttentionSettings
from embedder.calibrate.memory import SampleSize, check_room, choose_chunks, choose_queries
from embedder.calibrate.ridge import Features, Rows, choose_layers
from embedder.core.errors import ConfigError

LAYERS = {depth: choose_layers(depth, 4 * 1024) for depth in range(1, 24)}
WIDE_AND_DEEP = Features(LAYERS, tuple(range(24)), 1024, 2)
SETTINGS = AttentionSettings()


@pytest.mark.parametrize("fitted", [10_000, 40_000])
def test_all_depths_of_24_layers_of_1024_fit_into_9_gb(fitted: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    size = Split([pa.table({"row": range(250)})], [pa.table({"row": range(2250)})]).measure(2250, fitted / 2250 - 1, 0)
    assert (size.fitted, size.held_out) == (fitted, 500)
    check_room(WIDE_AND_DEEP, size, 1024, SETTINGS, (9_500_000_000, 100_000_000_000))
    assert f"23 maps on {fitted:,} chunks take " in caplog.text
    assert "the largest map adds 12.6 M multiply-adds to a chunk" in caplog.text


def test_a_machine_that_is_too_small_is_told_the_setting_that_needs_it() -> None:
    size = SampleSize(40_000, 500, 1024)
    with pytest.raises(
        ConfigError, match=r"calibrate\.depths: 23 maps on 40,000 chunks take \d\.\d GB of memory to fit and attention pooling 0\.0"
    ):
        check_room(WIDE_AND_DEEP, size, 1024, AttentionSettings(chunks=0), (3_000_000_000, 100_000_000_000))
    with pytest.raises(ConfigError, match=r"calibrate\.attention\.chunks: .* this machine has 6\.5; name fewer calibrate\.depths, lower"):
        check_room(WIDE_AND_DEEP, size, 1024, AttentionSettings(chunks=8192), (6_500_000_000, 100_000_000_000))
    with pytest.raises(ConfigError, match=r"calibrate\.num_documents: .* take 15\.9 GB of disk, 10\.0 are free .* set TMPDIR"):
        check_room(WIDE_AND_DEEP, size, 1024, SETTINGS, (64_000_000_000, 10_000_000_000))


def test_narrow_states_have_more_queries() -> None:
    assert [choose_queries(size) for size in (384, 512, 768, 1024)] == [4, 4, 2, 2]
    assert [choose_queries(384, 2), choose_queries(1024, 4)] == [2, 4]


@pytest.mark.parametrize(
    ("num_layers", "hidden_size", "chunks"), [(7, 384, 12_288), (13, 384, 7561), (13, 768, 4096), (24, 1024, 4096), (0, 384, 12_288)]
)
def test_a_small_model_trains_on_more_chunks_for_what_a_larger_one_takes(num_layers: int, hidden_size: int, chunks: int) -> None:
    layers = tuple(range(num_layers))
    features = Features({depth: layers[:depth] for depth in layers[1:]} | {num_layers: layers}, layers, hidden_size, 4)
    assert choose_chunks(features, SETTINGS) == chunks
    assert [choose_chunks(features, AttentionSettings(chunks=each)) for each in (0, 512, 50_000)] == [0, 512, 50_000]


@pytest.mark.parametrize("num_rows", [1200, 400], ids=["more chunks than features", "fewer"])
def test_fitting_takes_no_more_memory_than_was_said(num_rows: int, tmp_path: Path) -> None:
    features = Features({2: (0, 1, 2)}, (0, 1, 2), 64, 2)
    rng = np.random.default_rng(0)
    rows = Rows(tmp_path, 3, features.block, 64)
    for _ in range(num_rows // 200):
        rows.add(rng.normal(size=(200, 3 * features.block)).astype(np.float32), rng.normal(size=(200, 64)).astype(np.float32), 50)
    rows.hold_out(rng.normal(size=(50, 3 * features.block)).astype(np.float32))
    tracemalloc.start()
    solve = rows.fit([0, 1, 2])
    for strength in (0.1, 1.0):
        solve(strength).predict()
    solve(1.0).make_map()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < SampleSize(num_rows, 50, 200).fit_bytes(features, 64) < 2 * peak, "a factor of torch takes the place of the sum before"


def test_maps_of_many_depths_are_counted_three_times_as_when_they_are_written() -> None:
    small = SampleSize(300, 60, 100)
    maps = 4 * 1024 * sum(len(layers) * WIDE_AND_DEEP.block for layers in LAYERS.values())
    assert small.fit_bytes(WIDE_AND_DEEP, 1024) == 3 * maps > 3_000_000_000
