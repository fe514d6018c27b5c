from typing import Any

import pyarrow as pa
import pytest

from embedder.core.context import cover_context, drop_context, find_format, name_columns, read_contexts
from tests.text.test_chunking import make_spec


def hashes(title: str | None, shard: str = "a.txt", **changes: Any) -> list[str]:
    documents = pa.table({"text": ["x"], "content_hash": ["h"], "shard": [shard], "context:title|": pa.array([title], pa.string())})
    return cover_context(documents, make_spec(**changes))["content_hash"].to_pylist()


def test_a_content_hash_covers_the_context_only_if_chunks_depend_on_it() -> None:
    assert hashes("A") == hashes("B") == hashes("B", "b.md", text_format="markdown") == ["h"]
    titled = {"template": "{title|none} {chunk}", "context_tokens": 9}
    assert len({hashes(title, **titled)[0] for title in ("A", "B", None)}) == 3
    assert hashes("A", **titled) == hashes(" A\n", **titled)
    assert hashes(None, **titled) == hashes("", **titled)
    assert hashes("A", "a.md", text_format="auto") != hashes("A", "a.txt", text_format="auto")


def test_an_automatic_format_goes_by_the_suffix_of_the_shard() -> None:
    found = {uri: find_format(uri) for uri in ("s3://b/x.MD", "x/y.py.gz", "x.jsonl", "docs.md/part-0.parquet", "readme")}
    assert list(found.values()) == ["markdown", "code", "plain", "plain", "plain"]


def test_columns_that_only_the_template_reads_are_not_kept() -> None:
    documents = pa.table({"text": ["x"], "context:title": ["A"], "title": ["A"]})
    assert drop_context(documents).column_names == ["text", "title"]
    (context,) = read_contexts(documents, make_spec(template="{title}{chunk}"))
    assert context.values == {"title": "A"}


def test_a_column_may_be_absent_if_every_field_of_it_states_a_default() -> None:
    assert name_columns("{title|none} {date|}{lang}{lang|en} {headings} {chunk}") == {
        "title": "context:title|", "date": "context:date|", "lang": "context:lang",
    }  # fmt: skip


@pytest.mark.parametrize("template", [None, "{title} {chunk}"])
def test_the_template_is_part_of_the_space(template: str | None) -> None:
    spec = make_spec(template=template, context_tokens=None if template is None else 9)
    assert (spec.space_id == make_spec().space_id) == (template is None)
    assert spec.for_queries().template is None
