"""mteb runs on our encoder, and its score equals the one that we compute."""

from collections.abc import Callable

import numpy as np
import pytest

from embedder.core.errors import ConfigError
from embedder.sweep.datasets import Similarity
from embedder.sweep.evaluate import evaluate_similarity
from embedder.sweep.grid import Grid
from tests.sentences import sentence

mteb = pytest.importorskip("mteb")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of mteb and datasets


def test_the_score_of_a_task_equals_our_metric(grid_of: Callable[..., Grid]) -> None:
    from datasets import Dataset
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    from embedder.sweep.mteb_tasks import evaluate_task

    firsts = [sentence(number) for number in range(40)]
    seconds = [sentence(number * 12 + 7) for number in range(40)]
    scores = np.random.default_rng(0).uniform(0, 5, 40).round(1).tolist()

    class LocalTask(AbsTaskSTS):
        metadata = TaskMetadata(
            name="LocalSTS", description="local", reference=None, dataset={"path": "local/none", "revision": "1"}, type="STS",
            category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"], main_score="spearman",
            date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None, dialect=None,
            sample_creation=None, bibtex_citation=None,
        )  # fmt: skip
        min_score, max_score = 0, 5

        def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
            self.dataset = {"test": Dataset.from_dict({"sentence1": firsts, "sentence2": seconds, "score": scores})}
            self.data_loaded = True

    grid = grid_of(precisions=("float32", "binary"))
    ours = evaluate_similarity(Similarity("local", tuple(firsts), tuple(seconds), tuple(scores)), grid, 0)
    theirs = evaluate_task(LocalTask(), grid)
    compared = [setting for setting in theirs if setting.query_side == "same"]
    assert len(compared) == 8
    for setting in compared:  # mteb's cosine_spearman breaks ties of bits by rounding; its spearman calls our encoder
        assert theirs[setting].metrics["main score"] == pytest.approx(ours[setting].metrics["Spearman"], abs=1e-4), setting


def test_an_unknown_task_is_refused() -> None:
    from embedder.sweep.mteb_tasks import find_task

    with pytest.raises(ConfigError, match="has no such task"):
        find_task("NoSuchTaskAtAll")
