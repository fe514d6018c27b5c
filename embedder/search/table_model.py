"""A table's spec, and the model that the user names → the spec whose model is loaded."""

from embedder.core.errors import ConfigError
from embedder.core.spec import EmbeddingSpec
from embedder.model.files.recipe import PACKAGE


def choose_model(spec: EmbeddingSpec, model: str | None) -> EmbeddingSpec:
    """Return a spec read from a table with the model, or an API's tokenizer, that the user names; its files must be those of the spec.

    ConfigError if none is named and the table names a Python package: whoever writes a table must not choose what a search imports.
    """
    field = "tokenizer" if spec.is_api else "model"
    named = getattr(spec, field)
    if model is None and str(named).startswith(PACKAGE):
        raise ConfigError(
            f"{named}: the table names a Python package, which would be imported to search it; "
            f"if you trust the package, name it with --model {named} (in Python: model={named!r})"
        )
    if model is None or model == named:
        return spec
    return spec.model_copy(update={field: model} if spec.is_api else {field: model, "revision": None})
