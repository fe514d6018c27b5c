"""A spec → code in plain sentence-transformers, or openai, that makes the same query vectors, if these can."""

from embedder.core.errors import ModelError
from embedder.core.rotation import rotation_uri
from embedder.core.spec import API, EmbeddingSpec
from embedder.core.storage import Location
from embedder.model.files.families import find_family
from embedder.model.files.json_files import read_json
from embedder.model.files.recipe import PACKAGE, ModelRecipe, find_recipe

_NORMALIZE = "vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)"


def write_snippet(spec: EmbeddingSpec, table: Location) -> str:
    """Write Python that sets `vectors` to the vectors of `queries`; ModelError if sentence-transformers cannot make them.

    Rotated vectors use the matrix in the table's folder.
    """
    note = [] if spec.template is None else [f"# a document's chunk was embedded as {spec.template!r}; a query has no such context"]
    return "\n".join([*note, _write_code(spec.for_queries(), table)])


def _write_code(spec: EmbeddingSpec, table: Location) -> str:
    if spec.is_api:
        return _write_api_snippet(spec)
    recipe = find_recipe(spec)
    _refuse_impossible(spec, recipe)
    package = spec.model.removeprefix(PACKAGE) if spec.model.startswith(PACKAGE) else None
    lines = ["import fsspec", "import numpy as np"] if spec.rotation else []
    lines += [*(["import torch"] if spec.final_norm == "skip" else []), *([f"import {package}"] if package else [])]
    name = f"str({package}.MODEL_DIR)" if package else repr(spec.model)
    revision = f", revision={spec.revision!r}" if spec.revision else ""
    truncate = "" if spec.rotation else f", truncate_dim={spec.dim}"
    lines += ["from sentence_transformers import SentenceTransformer", f"model = SentenceTransformer({name}{revision}{truncate})"]
    lines += _model_changes(spec, recipe)
    task = ", task='query'" if recipe.routers else ""
    lines.append(f"vectors = model.encode(queries, prompt={spec.prompt!r}{task}, normalize_embeddings=True)")
    if spec.rotation:
        lines.append(f"with fsspec.open({rotation_uri(spec.rotation, table.uri)!r}) as file:")
        lines += [f"    vectors = vectors @ np.load(file)[:, :{spec.dim}]", _NORMALIZE]
    return "\n".join(lines)


def _write_api_snippet(spec: EmbeddingSpec) -> str:
    """Write the call of an API; the server refuses a text that is too long, instead of truncating it."""
    texts = f"[{spec.prompt!r} + query for query in queries]" if spec.prompt else "queries"
    lines = [
        "import numpy as np",
        "from openai import OpenAI",
        f"answer = OpenAI(base_url={spec.base_url!r}).embeddings.create(model={spec.model.removeprefix(API)!r}, input={texts})",
        f"vectors = np.array([each.embedding for each in sorted(answer.data, key=lambda each: each.index)])[:, :{spec.dim}]",
    ]
    return "\n".join([*lines, *([_NORMALIZE] if spec.normalize else [])])


def _refuse_impossible(spec: EmbeddingSpec, recipe: ModelRecipe) -> None:
    problems = []
    if spec.layer_norm:
        problems.append("a LayerNorm before the truncation")
    if spec.pooling != recipe.pooling:
        problems.append(f"pooling {spec.pooling!r} where the model's files say {recipe.pooling!r}")
    if recipe.is_translated:
        problems.append("a model that names remote code, without running it")
    elif recipe.adapters:
        problems.append("an adapter, without peft")
    if recipe.routers and _model_changes(spec, recipe):
        problems.append("changes of one route")
    if not spec.normalize:
        problems.append("a truncation without L2")
    if problems:
        raise ModelError(
            f"{spec.model!r}: sentence-transformers has no setting for {', nor for '.join(problems)}; use QueryEncoder.from_table"
        )


def _model_changes(spec: EmbeddingSpec, recipe: ModelRecipe) -> list[str]:
    family, lines = find_family(recipe.family), []
    is_part = "text_config" in read_json(recipe.transformer_folder / "config.json")
    transformer = f"model[0].auto_model.{family.part if is_part else ''}"
    if spec.depth < recipe.num_layers and family.shared_layers:
        lines.append(f"{transformer}config.num_hidden_layers = {spec.depth}")
    elif spec.depth < recipe.num_layers:
        layers = f"{transformer}{family.layers}"
        lines.append(f"{layers} = {layers}[:{spec.depth}]")
    if not spec.include_prompt:
        lines.append("model.set_pooling_include_prompt(False)")
    if spec.final_norm == "skip":
        lines.append(f"{transformer}{family.final_norm} = torch.nn.Identity()")
    if spec.max_tokens != recipe.max_tokens and not recipe.is_static:  # a table takes queries of any length
        lines.append(f"model.max_seq_length = {spec.max_tokens}")
    return lines
