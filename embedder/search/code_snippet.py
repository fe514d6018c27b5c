"""A spec → the lines of plain sentence-transformers, or of openai, that make the same query vectors, where these can."""

from embedder.core.errors import ModelError
from embedder.core.rotation import rotation_uri
from embedder.core.spec import API, EmbeddingSpec
from embedder.model.files.families import find_family
from embedder.model.files.recipe import PACKAGE, ModelRecipe, locate_model, read_recipe


def write_recipe(spec: EmbeddingSpec, table: str) -> str:
    """Write Python that sets `vectors` to the vectors of `queries`; ModelError says what sentence-transformers cannot do.

    Vectors that were turned are so by the matrix that the table's folder holds.
    """
    asked = spec.for_queries()
    if spec.is_api:
        return write_api_recipe(asked)
    folder, _ = locate_model(asked.model, asked.revision)
    recipe = read_recipe(folder)
    refuse_impossible(asked, recipe)
    model = f"model = SentenceTransformer({_arguments(asked)})"
    return "\n".join([*_imports(asked), model, *_changes(asked, recipe), _encode(asked), *_turn(asked, table)])


def write_api_recipe(spec: EmbeddingSpec) -> str:
    """Write the lines that ask an API; a text of more tokens than it takes is refused there, not cut."""
    texts = f"[{spec.prompt!r} + query for query in queries]" if spec.prompt else "queries"
    lines = [
        "import numpy as np",
        "from openai import OpenAI",
        f"answer = OpenAI(base_url={spec.base_url!r}).embeddings.create(model={spec.model.removeprefix(API)!r}, input={texts})",
        f"vectors = np.array([each.embedding for each in sorted(answer.data, key=lambda each: each.index)])[:, :{spec.dim}]",
    ]
    return "\n".join([*lines, *(["vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)"] if spec.normalize else [])])


def refuse_impossible(spec: EmbeddingSpec, recipe: ModelRecipe) -> None:
    """Refuse what the library has no setting for."""
    problems = []
    if spec.layer_norm:
        problems.append("a LayerNorm before the cut")
    if spec.pooling != recipe.pooling:
        problems.append(f"pooling {spec.pooling!r} where the model's files say {recipe.pooling!r}")
    if not spec.normalize:
        problems.append("a cut without L2")
    if problems:
        raise ModelError(
            f"{spec.model!r}: sentence-transformers has no setting for {', nor for '.join(problems)}; use QueryEncoder.from_table"
        )


def _imports(spec: EmbeddingSpec) -> list[str]:
    package = [f"import {spec.model.removeprefix(PACKAGE)}"] if spec.model.startswith(PACKAGE) else []
    torch = ["import torch"] if spec.final_norm == "skip" else []
    numpy = ["import fsspec", "import numpy as np"] if spec.rotation else []
    return [*numpy, *torch, *package, "from sentence_transformers import SentenceTransformer"]


def _arguments(spec: EmbeddingSpec) -> str:
    name = f"str({spec.model.removeprefix(PACKAGE)}.MODEL_DIR)" if spec.model.startswith(PACKAGE) else repr(spec.model)
    revision = f", revision={spec.revision!r}" if spec.revision else ""
    cut = "" if spec.rotation else f", truncate_dim={spec.dim}"
    return f"{name}{revision}{cut}"


def _changes(spec: EmbeddingSpec, recipe: ModelRecipe) -> list[str]:
    family, lines = find_family(recipe.family), []
    if spec.depth < recipe.num_layers:
        layers = f"model[0].auto_model.{family.layers}"
        lines.append(f"{layers} = {layers}[:{spec.depth}]")
    if spec.final_norm == "skip":
        lines.append(f"model[0].auto_model.{family.final_norm} = torch.nn.Identity()")
    if spec.max_tokens != recipe.max_tokens:
        lines.append(f"model.max_seq_length = {spec.max_tokens}")
    return lines


def _encode(spec: EmbeddingSpec) -> str:
    return f"vectors = model.encode(queries, prompt={spec.prompt!r}, normalize_embeddings=True)"


def _turn(spec: EmbeddingSpec, table: str) -> list[str]:
    if spec.rotation is None:
        return []
    return [
        f"with fsspec.open({rotation_uri(spec.rotation, table)!r}) as file:",
        f"    vectors = vectors @ np.load(file)[:, :{spec.dim}]",
        "vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)",
    ]
