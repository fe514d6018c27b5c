"""A Router's route for queries → its settings, and the problems of settings that the two routes do not share."""

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.spec import EmbeddingSpec, QueryRoute
from embedder.model.defaults import choose_defaults
from embedder.model.files.recipe import ModelRecipe


def resolve_queries(spec: EmbeddingSpec, chunking: ChunkingConfig, recipe: ModelRecipe, queries: ModelRecipe) -> QueryRoute:
    """Return the settings of the route for queries: all its layers, unless documents stay in the space of a smaller depth."""
    defaults, is_full = choose_defaults(spec.model, queries), spec.exit == "calibrated" or spec.depth == recipe.num_layers
    return QueryRoute(
        depth=queries.num_layers if is_full else spec.depth,
        final_norm="apply" if queries.has_final_norm else "none",
        pooling=defaults.pooling,
        layer_norm=defaults.layer_norm,
        include_prompt=defaults.include_prompt or not spec.query_prompt,
        max_tokens=min(chunking.max_tokens or queries.max_tokens, queries.position_limit),
    )


def check_routes(spec: EmbeddingSpec, embedding: EmbeddingConfig, recipe: ModelRecipe, queries: ModelRecipe) -> list[str]:
    """Return the problems of settings that a Router's routes do not share."""
    set_ones = {name: value for name in ("pooling", "layer_norm", "final_norm") if (value := getattr(embedding, name)) is not None}
    found = [f"embedding.{name}={value!r}: the routes of {spec.model!r} have their own; leave it out" for name, value in set_ones.items()]
    if spec.exit == "native" and spec.depth < recipe.num_layers != queries.num_layers:
        layers = f"{spec.model!r} has {recipe.num_layers} layers for documents and {queries.num_layers} for queries"
        found.append(f"embedding.depth={spec.depth}: {layers}; leave it out, or use a calibrated exit")
    return found
