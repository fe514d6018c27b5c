"""The encoder of a user's own graph refuses batches that it cannot embed, and loads where it runs."""

from typing import Any

import numpy as np
import pytest

from embedder.core.errors import ConfigError, EmbedderError
from embedder.pipeline.batch_encoder import BatchEncoder, assigned_resources


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> BatchEncoder:
    monkeypatch.setattr(BatchEncoder, "setup", lambda self, embedding, column, *_: setattr(self, "column", column))
    return BatchEncoder({"model": "m"}, "body")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1], "batch_format: a list is not a dict of arrays; leave batch_format out"),
        ({"text": np.array(["a"])}, r"column='body': not in the batch \(found: text\)"),
        ({"body": np.array(["a"]), "chunk": np.array([1])}, "chunk: a column that BatchEncoder adds"),
        ({"body": np.array(["a", None, " "], object)}, "body=None: 2 rows of a batch have no text; filter them out first"),
    ],
)
def test_a_batch_that_cannot_be_embedded_is_refused(encoder: BatchEncoder, batch: Any, message: str) -> None:
    with pytest.raises(EmbedderError, match=message):
        encoder(batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"model": "openai:m"},), "'openai:m': runs behind an API"),
        (({"modell": "m"},), "unknown key 'modell'; did you mean 'model'"),
        (({"model": "m"}, "text", {}, {"actors": [2, 1]}), "the fewest come first"),
    ],
)
def test_wrong_settings_are_refused_at_the_first_batch(arguments: tuple[Any, ...], message: str) -> None:
    encoder = BatchEncoder(*arguments)
    with pytest.raises(ConfigError, match=message):
        encoder({"text": np.array(["a"])})


def test_outside_of_an_actor_all_cpus_are_used() -> None:
    assert list(assigned_resources()) == ["CPU"]
