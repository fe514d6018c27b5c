"""A model's files, and facts that they leave out → the defaults of its settings, each with a reason if it is not in the files."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.spec import EmbeddingSpec, Pooling
from embedder.core.template import escape
from embedder.model.files.known_models import KNOWN_MODELS, KnownModel
from embedder.model.files.recipe import ModelRecipe

_BY_NAME = {name.lower(): known for name, known in KNOWN_MODELS.items()}
HasColumns = Callable[[str], bool]
"""Whether documents have the columns of a template."""

logger = logging.getLogger("embedder")

_TITLE_SLOT = "title: none"
_CARD = "known for this model, its files do not hold it"


@dataclass(frozen=True, slots=True)
class Defaults:
    """Settings of a model before the user's."""

    prompt: str
    query_prompt: str
    pooling: Pooling
    normalize: bool
    layer_norm: bool
    include_prompt: bool
    reasons: Mapping[str, str]
    """By setting: where its value is from, if not from the model's files."""

    def list_guesses(self, embedding: EmbeddingConfig) -> tuple[str, ...]:
        """Return a line for each default that the settings leave in place and the model's files do not make."""
        taken = {name: reason for name, reason in self.reasons.items() if getattr(embedding, name) is None}
        return tuple(f"embedding.{name}={_show(getattr(self, name))}: {reason}" for name, reason in taken.items())

    def add_title(self, chunking: ChunkingConfig, has_columns: HasColumns) -> ChunkingConfig:
        """Return the settings with the template that the prompt has a place for, unless they have one, if documents have its column."""
        template = template_with_title(self.prompt)
        if template is None or chunking.template is not None or not has_columns(template):
            return chunking
        logger.info("chunking.template=%r: the model's prompt has a place for titles, and documents have them", template)
        return chunking.model_copy(update={"template": template})


def choose_defaults(model: str, recipe: ModelRecipe) -> Defaults:
    """Choose each default: the model's files first, then what is known by its hub name, then a guess."""
    known = _BY_NAME.get(model.lower(), KnownModel())
    reasons: dict[str, str] = {}
    prompts, names = recipe.prompts, recipe.prompts.names
    prompt, query_prompt = prompts.document, prompts.query
    if not names:
        prompt, query_prompt = known.document_prompt, known.query_prompt
        reasons |= {name: _CARD for name, value in (("prompt", prompt), ("query_prompt", query_prompt)) if value}
    elif not prompt and not query_prompt:
        reason = f"the model's files name {', '.join(names)}, neither for documents nor for queries; choose among them and set the text"
        reasons |= {"prompt": reason, "query_prompt": reason}
    pooling = recipe.pooling
    if recipe.is_bare:
        pooling = known.pooling or pooling
        reasons["pooling"] = _CARD if known.pooling else "guessed, the model's folder has no modules.json; set it to be sure"
        if model.lower() not in _BY_NAME:
            reasons |= dict.fromkeys(("prompt", "query_prompt"), "guessed, the model's folder has none; set it to be sure")
    normalize = recipe.ends_normalized or recipe.similarity != "dot"
    if known.normalize is not None and not recipe.ends_normalized:
        normalize, reasons["normalize"] = known.normalize, _CARD
    layer_norm = recipe.layer_norm if known.layer_norm is None else known.layer_norm
    if known.layer_norm is None and layer_norm:
        reasons["layer_norm"] = "guessed, as nomic-embed-text-v1.5 needs it and v1 does not; set it to be sure"
    include_prompt = recipe.include_prompt if known.include_prompt is None else known.include_prompt
    return Defaults(prompt, query_prompt, pooling, normalize, layer_norm, include_prompt, reasons)


def list_notes(spec: EmbeddingSpec, recipe: ModelRecipe) -> tuple[str, ...]:
    """Return a line for each setting that the model was made for and that is not set: a dim, and a place for titles in its prompt."""
    notes, dims = [], {*recipe.matryoshka_dims, recipe.width}
    if recipe.matryoshka_dims and spec.dim not in dims and spec.rotation is None:  # axes of a calibration are ordered for any dim
        notes.append(f"embedding.dim={spec.dim}: the model's files name {', '.join(map(str, sorted(dims)))}; another dim may rank worse")
    if spec.template is None and (template := template_with_title(spec.prompt)):
        notes.append(f"chunking.template: the prompt {spec.prompt!r} has a place for titles; if documents have them, set {template!r}")
    return tuple(notes)


def template_with_title(prompt: str) -> str | None:
    """Return the template of a prompt that has a place for a document's title, as EmbeddingGemma's has; None if it has none."""
    return escape(prompt).replace(_TITLE_SLOT, "title: {title|none}") + "{chunk}" if _TITLE_SLOT in prompt else None


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
