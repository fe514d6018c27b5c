"""A document's context: the columns that a chunk's template names, and the format of its text. Both decide its chunks beside the text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import pyarrow as pa

from embedder.core.spec import AUTO, EmbeddingSpec, TextFormat
from embedder.core.template import parse_template

CONTEXT_PREFIX = "context:"
"""Before the names of columns that are read for the template only, among those of the metadata."""
OPTIONAL_SUFFIX = "|"
"""After such a name, which never holds it, where the template states a default for the column: a shard may then be without it."""

_MARKDOWN = "md markdown mdown mkd qmd rmd"
_CODE = "c cc cpp cs go h hpp java js jsx kt lua m php pl py pyi r rb rs scala sh sql swift ts tsx"
_BY_SUFFIX: dict[str, TextFormat] = {
    **dict.fromkeys(_MARKDOWN.split(), "markdown"),
    **dict.fromkeys(_CODE.split(), "code"),
    **dict.fromkeys(("html", "htm", "xhtml"), "html"),
}
NO_VALUES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Context:
    """Values of a document's columns, '' for none, and the format of its text."""

    values: Mapping[str, str]
    text_format: TextFormat


def find_format(uri: str) -> TextFormat:
    """Return the format that a shard's suffix names, compression aside: markdown, html, code or plain."""
    suffixes = uri.rpartition("/")[2].lower().split(".")[1:][-2:]
    return next((_BY_SUFFIX[each] for each in reversed(suffixes) if each in _BY_SUFFIX), "plain")


def name_columns(template: str | None) -> dict[str, str]:
    """Return the names in schema.DOCUMENTS of a template's columns, such as `context:lang`, and `context:title|` of `{title|none}`."""
    if template is None:
        return {}
    parsed = parse_template(template)
    return {name: CONTEXT_PREFIX + name + OPTIONAL_SUFFIX * (name not in parsed.required) for name in parsed.columns}


def read_contexts(documents: pa.Table, spec: EmbeddingSpec) -> list[Context]:
    """Return the context of each of schema.DOCUMENTS, from the columns of `name_columns` and, for an automatic format, `shard`."""
    names = name_columns(spec.template)
    columns = [[(value or "").strip() for value in documents[column].to_pylist()] for column in names.values()]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] if names else [NO_VALUES] * documents.num_rows
    if spec.text_format == AUTO:
        formats = {uri: find_format(uri) for uri in documents["shard"].unique().to_pylist()}
        return [Context(row, formats[uri]) for row, uri in zip(rows, documents["shard"].to_pylist(), strict=True)]
    return [Context(row, spec.text_format or "plain") for row in rows]


def cover_context(documents: pa.Table, spec: EmbeddingSpec) -> pa.Table:
    """Return schema.DOCUMENTS with content hashes that also cover the context, where a document's chunks depend on one."""
    if not spec.has_context:
        return documents
    hashes = [
        _cover(content_hash, context)
        for content_hash, context in zip(documents["content_hash"].to_pylist(), read_contexts(documents, spec), strict=True)
    ]
    return documents.set_column(documents.schema.get_field_index("content_hash"), "content_hash", pa.array(hashes, pa.string()))


def _cover(content_hash: str, context: Context) -> str:
    values = [context.text_format, *sorted(context.values.items())]
    return blake2b((content_hash + json.dumps(values)).encode(), digest_size=16).hexdigest()


def keep_context(metadata: pa.Schema) -> pa.Schema:
    """Return the columns of the metadata that are read for the template only."""
    return pa.schema([field for field in metadata if field.name.startswith(CONTEXT_PREFIX)])


def drop_context(documents: pa.Table) -> pa.Table:
    """Return documents without the columns that are read for the template only, which the table does not keep."""
    return documents.select([name for name in documents.schema.names if not name.startswith(CONTEXT_PREFIX)])
