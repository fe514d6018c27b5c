"""A resolved spec and its model → the reasons why chunks cannot be pooled from one pass over their document."""

from embedder.config.embedding import EmbeddingConfig
from embedder.core.spec import EmbeddingSpec
from embedder.model.files.recipe import ModelRecipe


def check_late(spec: EmbeddingSpec, embedding: EmbeddingConfig, recipe: ModelRecipe) -> list[str]:
    """Return the problems of late chunking with this model."""
    if spec.late_tokens is None:
        return []
    where, name, advice = "chunking.late=true", repr(spec.model), "leave one of the two out"
    refused = {
        f"{name} is a table of token vectors, which no text around them changes; leave it out": recipe.is_static,
        f"chunking.max_tokens={spec.max_tokens} is all that {name} takes; set it to the size of a chunk": spec.max_tokens
        >= spec.late_tokens,
        f"a chunk is the mean of its tokens, not embedding.pooling={spec.pooling!r}; {advice}": spec.pooling != "mean",
        f"embedding.calibration={embedding.calibration!r} was fitted on chunks embedded alone; {advice}": embedding.calibration is not None,
        f"{name} leaves the prompt out of pooling; set both prompts to ''": not spec.include_prompt,
    }
    return [f"{where}: {problem}" for problem, applies in refused.items() if applies]
