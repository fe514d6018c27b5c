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


@pytest.mark.real
def test_a_template_takes_the_columns_of_the_batch(minilm: str) -> None:
    embedding, rows = {"model": minilm, "depth": 1}, {"body": np.array(["an engine", "a river " * 40]), "title": np.array(["Boat", None])}
    chunking = {"max_tokens": 48, "template": "{title|none}, {year}: {chunk}"}
    titled = BatchEncoder(embedding, "body", chunking)(rows | {"year": np.array([1987.5, np.nan])})
    assert {name: titled[name].tolist() for name in ("title", "num_chunks", "start_char")} == {
        "title": ["Boat", None, None], "num_chunks": [1, 2, 2], "start_char": [0, 0, titled["end_char"][1] + 1]
    }  # fmt: skip
    around = [f"Boat, 1987.5: {rows['body'][0]}", *(f"none, : {rows['body'][1][start:end]}" for start, end in zip(
        titled["start_char"][1:], titled["end_char"][1:], strict=True))]  # fmt: skip
    plain = BatchEncoder(embedding, "body")({"body": np.array(around)})
    assert titled["num_tokens"].tolist() == plain["num_tokens"].tolist()
    np.testing.assert_allclose(titled["embedding"], plain["embedding"], atol=1e-5)
    with pytest.raises(ConfigError, match=r"chunking\.template: {year} is not in the batch \(found: body, title\)"):
        BatchEncoder(embedding, "body", chunking)(rows)
    for structure in ({"template": "{headings}{chunk}"}, {"boundaries": ["sentence", "word"]}):
        with pytest.raises(ConfigError, match=r"text_format=auto: a batch has no shard whose suffix names it; set plain, .*html or code"):
            BatchEncoder(embedding, "body", structure)(rows)


def test_outside_of_an_actor_all_cpus_are_used() -> None:
    assert list(assigned_resources()) == ["CPU"]
