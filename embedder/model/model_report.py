"""A model's name → whether it runs, and its shape, prompts and memory, or the reason why it is refused. No weight is loaded."""

from collections.abc import Iterator
from typing import Any

from embedder.config.embedding import EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.model.defaults import choose_defaults
from embedder.model.files.families import FAMILIES, find_family
from embedder.model.files.known_models import KNOWN_MODELS
from embedder.model.files.model_config import REMOTE_CODE
from embedder.model.files.recipe import ModelRecipe, locate_model, read_query_recipe, read_recipe
from embedder.model.files.st_layout import ACTIVATIONS, POOLINGS
from embedder.model.files.tokenizer import load_tokenizer

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


def list_support() -> dict[str, str]:
    """Return the supported families, poolings, modules and remote code by name."""
    padded = [name for name, family in FAMILIES.items() if not family.packed]
    return {
        "families": ", ".join(FAMILIES),
        "padded only": ", ".join(padded),
        "no float16": ", ".join(name for name, family in FAMILIES.items() if not family.float16),
        "remote code replaced": ", ".join(f"{each.model_type} ({each.remote_class}) by {each.family}" for each in REMOTE_CODE),
        "adapters merged": "LoRA of peft beside the weights; those for retrieval of jina-embeddings-v3 and v5",
        "poolings": f"{', '.join(POOLINGS)}, or several side by side",
        "modules after pooling": "Dense, LayerNorm, Normalize, Dropout",
        "modules with routes": "Router (Asym), one route for documents and one for queries",
        "activations of Dense": ", ".join(name.rpartition(".")[2] for name in ACTIVATIONS),
        "weights": "safetensors, else pytorch_model.bin that holds tensors only",
        "defaults known by name": ", ".join(KNOWN_MODELS),
    }


def describe_model(model: str, revision: str | None) -> dict[str, Any]:
    """Return what a run would resolve for a model: `runs`, and `refused` with the reason if it does not.

    From a hub only configs and tokenizer are downloaded, so that names and shapes of the weights remain unchecked.
    """
    try:
        folder, commit = locate_model(model, revision, with_weights=False)
        recipe = read_recipe(folder, with_weights=commit is None)
        queries = read_query_recipe(recipe, with_weights=commit is None)
        tokenizer, *_ = [load_tokenizer(each) for each in (recipe, queries) if each]
        if commit is None:
            from embedder.model.loading import check_weights  # imports torch: seconds

            for each in filter(None, (recipe, queries)):
                check_weights(each)
    except (ConfigError, ModelError) as error:
        return {"model": model, "runs": False, "refused": str(error)}
    defaults = choose_defaults(model, recipe)
    family = find_family(recipe.family)
    return {
        "model": model,
        "runs": True,
        "revision": commit,
        "weights_checked": commit is None,
        "family": recipe.family,
        "layers": recipe.num_layers,
        "hidden_size": recipe.hidden_size,
        "components": recipe.width,
        "query_route": queries and f"{queries.family}, {queries.num_layers} layers of {queries.hidden_size}, pooling {queries.pooling}",
        "adapter": recipe.adapters and recipe.adapters.document,
        "query_adapter": recipe.adapters and recipe.adapters.query,
        "matryoshka_dims": list(recipe.matryoshka_dims),
        "final_norm": recipe.has_final_norm,
        "pooling": defaults.pooling,
        "modules": [
            step.kind if step.kind == "normalize" else f"{step.kind} {step.in_features}→{step.out_features}" for step in recipe.steps
        ],
        "normalize": defaults.normalize,
        "max_tokens": recipe.max_tokens,
        "position_limit": recipe.position_limit,
        "special_tokens": tokenizer.num_special_tokens_to_add(False),
        "prompt_is_pooled": defaults.include_prompt,
        "prompt": defaults.prompt,
        "query_prompt": defaults.query_prompt,
        "prompt_names": list(recipe.prompts.names),
        "layouts": ["padded", "packed"] if family.packed else ["padded"],
        "dtypes": [*DTYPE_BYTES, *(["float16"] if family.float16 else [])],
        "weight_bytes": measure_weights(recipe),
        "guesses": list(defaults.list_guesses(EmbeddingConfig(model=model))),
    }


def measure_weights(recipe: ModelRecipe) -> dict[str, dict[int, int]]:
    """Return the bytes of the transformer's weights by dtype and depth, for a quarter, half, three quarters and all of the layers."""
    from embedder.model.loading import count_parameters  # imports torch: seconds

    num_layers = recipe.num_layers
    depths = sorted({max(1, num_layers * share // 4) for share in (1, 2, 3, 4)})
    counts = {depth: count_parameters(recipe, depth) for depth in depths}
    return {dtype: {depth: count * size for depth, count in counts.items()} for dtype, size in DTYPE_BYTES.items()}


def list_lines(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a report as names and values."""
    for name, value in report.items():
        if name == "weight_bytes":
            for dtype, by_depth in value.items():
                yield f"weights, {dtype}", ", ".join(f"depth {depth}: {size / 1e6:,.0f} MB" for depth, size in by_depth.items())
        elif isinstance(value, list):
            for line in value if name == "guesses" else [", ".join(map(str, value))] if value else []:
                yield name.replace("_", " "), line
        elif isinstance(value, bool):
            yield name.replace("_", " "), "yes" if value else "no"
        elif value is not None:
            yield name.replace("_", " "), repr(value) if name in ("prompt", "query_prompt") else str(value)
