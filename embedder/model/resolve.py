"""Settings and the model's own files → the resolved spec and a tokenizer that CPU workers rebuild without transformers."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.core.quantization import Floats, Ranges
from embedder.core.retry import is_transient
from embedder.core.rotation import digest_array
from embedder.core.spec import EmbeddingSpec
from embedder.core.template import escape, parse_template
from embedder.model.calibration import Calibration, RangeKey, load_calibration
from embedder.model.check_late import check_late
from embedder.model.defaults import Defaults, HasColumns, choose_defaults, list_notes
from embedder.model.files.families import LINEAR, find_family
from embedder.model.files.recipe import ModelRecipe, locate_model, peek_model, read_query_recipe, read_recipe
from embedder.model.files.tokenizer import load_tokenizer
from embedder.model.query_route import check_routes, resolve_queries

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """The model as every worker needs it."""

    spec: EmbeddingSpec
    tokenizer_json: str
    """For `tokenizers.Tokenizer.from_str`; it neither truncates nor pads."""
    hidden_size: int
    vocab_size: int
    calibration: Calibration | None = None
    """The artifact that the spec names."""
    guesses: tuple[str, ...] = ()
    """Settings that neither the user nor the model's files make, a line each."""

    def log_guesses(self) -> None:
        """Log what was guessed."""
        for line in self.guesses:
            logger.warning("%s", line)

    @property
    def ranges(self) -> Ranges | None:
        """Ranges of this spec's int8 vectors; None unless it is quantized to int8."""
        if self.calibration is None or self.spec.quantization != "int8":
            return None
        return self.calibration.ranges[RangeKey.of(self.spec)]

    @property
    def rotation_WW(self) -> Floats | None:  # noqa: N802
        """Rotation of this spec's vectors before truncation, None if there is none."""
        return self.calibration.rotation_WW if self.calibration and self.spec.rotation else None


def looks_wrong(embedding: EmbeddingConfig) -> bool:
    """Return whether `resolve_model` will raise an error for the model, the depth or the dim; cheap, and may miss some."""
    if embedding.is_api:
        return False
    try:
        num_layers, width = peek_model(embedding.model, embedding.revision)
    except ModelError:
        return True
    return any(asked and most and asked > most for asked, most in ((embedding.depth, num_layers), (embedding.dim, width)))


def resolve_model(embedding: EmbeddingConfig, chunking: ChunkingConfig, has_columns: HasColumns | None = None) -> ResolvedModel:
    """Return the settings with every default filled in from the model's files; one ConfigError lists all problems, a line each.

    `has_columns` is asked for the columns of the template that the model's prompt has a place for, which is then a default.
    ModelError: the hub is unreachable, and no other setting would help.
    """
    try:
        folder, commit = locate_model(embedding.model, embedding.revision)
        recipe = read_recipe(folder)
        queries = read_query_recipe(recipe)
        tokenizer, *_ = [_load_checked(each) for each in (recipe, queries) if each]
    except ModelError as error:
        if is_transient(error):
            raise
        message = str(error)
        raise ConfigError(message if message.startswith("embedding.") else f"embedding.model={embedding.model!r}: {message}") from error
    defaults = choose_defaults(embedding.model, recipe)
    if has_columns and embedding.prompt is None:
        chunking = defaults.add_title(chunking, has_columns)
    spec = _fill_defaults(embedding, chunking, recipe, commit, defaults)
    problems = [
        *_check_model(embedding, recipe),
        *_check_similarity(embedding, recipe),
        *_check_truncation(chunking, recipe),
        *check_float8(spec, recipe),
        *check_late(spec, embedding, recipe),
        *_check_lengths(spec, chunking, recipe, tokenizer),
        *_check_prompts(spec),
    ]
    calibration = load_calibration(embedding.calibration) if embedding.calibration else None
    if calibration and not problems:
        spec = _apply_calibration(spec, embedding, calibration)
    problems += _check_calibration(spec, embedding, calibration)
    if queries:
        problems += check_routes(spec, embedding, recipe, queries)
        spec = spec.model_copy(update={"queries": resolve_queries(spec, chunking, recipe, queries)})
    if problems:
        raise ConfigError("\n".join(problems))
    guesses = (*defaults.list_guesses(embedding), *list_notes(spec, recipe))
    return ResolvedModel(spec, tokenizer.to_str(), recipe.hidden_size, recipe.vocab_size, calibration, guesses)


def _load_checked(recipe: ModelRecipe) -> Tokenizer:
    """Load the tokenizer, and check that the weights are those of the config."""
    from embedder.model.loading import check_weights  # imports torch: seconds

    tokenizer = load_tokenizer(recipe)
    check_weights(recipe)
    return tokenizer


def _fill_defaults(
    embedding: EmbeddingConfig, chunking: ChunkingConfig, recipe: ModelRecipe, commit: str | None, defaults: Defaults
) -> EmbeddingSpec:
    prompt = defaults.prompt if embedding.prompt is None else embedding.prompt
    query_prompt = defaults.query_prompt if embedding.query_prompt is None else embedding.query_prompt
    return EmbeddingSpec(
        model=embedding.model,
        revision=commit,
        model_checksum=recipe.checksum,
        depth=embedding.depth or recipe.num_layers,
        final_norm=(embedding.final_norm or "apply") if recipe.has_final_norm else "none",
        pooling=embedding.pooling or defaults.pooling,
        layer_norm=defaults.layer_norm if embedding.layer_norm is None else embedding.layer_norm,
        prompt=prompt,
        query_prompt=query_prompt,
        include_prompt=defaults.include_prompt or not (prompt or query_prompt),
        **choose_chunking(chunking, prompt, recipe.max_tokens),
        dim=embedding.dim or recipe.dim,
        normalize=defaults.normalize if embedding.normalize is None else embedding.normalize,
        float8=embedding.float8,
        quantization=embedding.quantization,
        adapter=recipe.adapters.document if recipe.adapters else None,
        query_adapter=recipe.adapters.query if recipe.adapters else None,
    )


def choose_chunking(chunking: ChunkingConfig, prompt: str, most_tokens: int) -> dict[str, Any]:
    """Return the fields of the spec that the chunking sets. The prompt precedes a template, unless the template begins with it."""
    max_tokens, template = chunking.max_tokens or most_tokens, chunking.template
    if template is not None and not parse_template(template).render({})[0].startswith(prompt):
        template = escape(prompt) + template
    template = None if template == escape(prompt) + "{chunk}" else template
    return {
        "max_tokens": max_tokens,
        "chunking": chunking.enabled,
        "overlap_tokens": chunking.overlap_tokens,
        "template": template,
        "context_tokens": None if template is None else chunking.context_tokens or max_tokens // 3,
        "boundaries": chunking.boundaries,
        "text_format": chunking.text_format if chunking.reads_format else None,
        "min_tokens": chunking.min_tokens,
        "late_tokens": most_tokens if chunking.late else None,
    }


def _apply_calibration(spec: EmbeddingSpec, embedding: EmbeddingConfig, calibration: Calibration) -> EmbeddingSpec:
    """Return the spec with the artifact's exit map for its depth, unless the settings choose an exit."""
    chosen = embedding.exit or ("calibrated" if spec.depth in calibration.maps else "native")
    query_depth = calibration.full_depth if chosen == "calibrated" else None
    rotation = digest_array(calibration.rotation_WW) if embedding.rotate and calibration.rotation_WW is not None else None
    changes = {"exit": chosen, "query_depth": query_depth, "calibration": calibration.fingerprint, "rotation": rotation}
    return spec.model_copy(update=changes)


def _check_calibration(spec: EmbeddingSpec, embedding: EmbeddingConfig, calibration: Calibration | None) -> list[str]:
    where, dim = f"embedding.calibration={embedding.calibration!r}", f"embedding.dim={spec.dim}"
    if spec.quantization == "binary" and spec.dim % 8:
        return [f"{dim}: binary packs eight components into a byte; choose a multiple of 8"]
    if calibration is None:
        needs = {
            "exit=calibrated": embedding.exit == "calibrated",
            "quantization=int8": spec.quantization == "int8",
            "rotate=true": embedding.rotate,
        }
        return [f"embedding.{name}: needs an artifact of jobs.calibrate; set embedding.calibration" for name, used in needs.items() if used]
    differences = calibration.differences(spec)
    if differences:
        return [f"{where}: was fitted for another model or recipe ({'; '.join(differences)}); make one with jobs.calibrate"]
    if spec.exit == "calibrated" and spec.depth not in calibration.maps:
        depths = ", ".join(map(str, sorted(calibration.maps))) or "none"
        return [f"embedding.depth={spec.depth}: {where} has maps for depths {depths}; choose one of these, or --embedding.exit native"]
    if embedding.rotate and spec.exit == "native" and spec.depth < calibration.full_depth:
        return [
            f"embedding.rotate=true: the axes are those of the full model's vectors, not of depth {spec.depth} with a native exit; "
            f"use a calibrated exit, or all {calibration.full_depth} layers"
        ]
    if embedding.rotate and spec.rotation is None:
        return [f"embedding.rotate=true: {where} has no rotation; make it again with jobs.calibrate"]
    key = RangeKey.of(spec)
    if spec.quantization == "int8" and key not in calibration.ranges:
        known = ", ".join(str(each.dim) for each in sorted(calibration.ranges, key=str) if replace(each, dim=key.dim) == key)
        return [f"{dim}: {where} has no ranges of int8 for it at depth {spec.depth}, {spec.exit} exit (dims there: {known or 'none'})"]
    if spec.exit == "native" and spec.quantization != "int8" and not embedding.rotate:
        return [f"{where}: has no effect at depth {spec.depth} with a native exit, without int8 and rotate; leave it out"]
    return []


def _check_model(embedding: EmbeddingConfig, recipe: ModelRecipe) -> list[str]:
    problems, name = [], repr(embedding.model)
    if embedding.depth is not None and recipe.is_static:
        problems.append(f"embedding.depth={embedding.depth}: {name} is a table of token vectors, without layers; leave it out")
    elif embedding.depth is not None and embedding.depth > recipe.num_layers:
        problems.append(f"embedding.depth={embedding.depth}: {name} has {recipe.num_layers} layers; choose 1 to {recipe.num_layers}")
    if embedding.dim is not None and embedding.dim > recipe.width:
        problems.append(f"embedding.dim={embedding.dim}: {name} has {recipe.width} components; choose 1 to {recipe.width}")
    if embedding.pooling not in (None, *LINEAR) and find_family(recipe.family).projection:
        problems.append(f"embedding.pooling={embedding.pooling!r}: {name} projects its states; choose among {', '.join(LINEAR)}")
    if embedding.pooling is not None and "+" in recipe.pooling:
        problems.append(f"embedding.pooling={embedding.pooling!r}: {name} has {recipe.pooling}, side by side; leave it out")
    if embedding.final_norm is not None and not recipe.has_final_norm:
        problems.append(f"embedding.final_norm={embedding.final_norm!r}: {name} ({recipe.family}) has no final norm; leave it out")
    return problems


def _check_similarity(embedding: EmbeddingConfig, recipe: ModelRecipe) -> list[str]:
    """Return the problem of a model that was trained for distances, which searches do not compute."""
    if recipe.similarity not in ("euclidean", "manhattan") or recipe.ends_normalized or embedding.normalize is not None:
        return []
    where = f"config_sentence_transformers.json: similarity_fn_name={recipe.similarity!r}"
    return [f"{where}: rows are ranked by inner products here; set embedding.normalize to true (cosine) or false (dot product)"]


def _check_truncation(chunking: ChunkingConfig, recipe: ModelRecipe) -> list[str]:
    if chunking.enabled or not recipe.truncates_left:
        return []
    return ["chunking.enabled=false: the tokenizer truncates on the left, which is not supported; chunk the documents"]


def check_float8(spec: EmbeddingSpec, recipe: ModelRecipe) -> list[str]:
    """Return the problems of layers that cannot multiply in float8."""
    if not spec.float8 or spec.depth > recipe.num_layers:
        return []
    if not find_family(recipe.family).float8:
        return [f"embedding.float8=true: family {recipe.family!r} has no products in float8; leave it out"]
    from embedder.model.float8 import find_unfit  # imports torch: seconds
    from embedder.model.loading import sketch_layers

    return [unfit] if (unfit := find_unfit(sketch_layers(recipe, spec.depth))) else []


def _check_lengths(spec: EmbeddingSpec, chunking: ChunkingConfig, recipe: ModelRecipe, tokenizer: Tokenizer) -> list[str]:
    where = f"chunking.max_tokens={spec.max_tokens}"
    if spec.max_tokens > recipe.position_limit:
        return [f"{where}: {spec.model!r} has positions for {recipe.position_limit} tokens; choose 4 to {recipe.position_limit}"]
    return check_room(spec, chunking, tokenizer)


def check_room(spec: EmbeddingSpec, chunking: ChunkingConfig, tokenizer: Tokenizer | None) -> list[str]:
    """Return the problems of a prompt or an overlap that leaves no room for text; without a tokenizer, 3 bytes are a token."""
    where = f"chunking.max_tokens={spec.max_tokens}"
    setting, fixed = f"embedding.prompt={spec.prompt!r}", spec.prompt
    if spec.template is not None:
        setting, fixed = f"chunking.template={spec.template!r}", "".join(parse_template(spec.template).render({}))
    special_tokens, fixed_tokens = 0, -(-len(fixed.encode()) // 3)
    if tokenizer is not None:
        special_tokens = tokenizer.num_special_tokens_to_add(False)
        fixed_tokens = len(tokenizer.encode(fixed, add_special_tokens=False).ids)
    if spec.context_tokens is not None and fixed_tokens > spec.context_tokens:
        return [
            f"{setting}: its own text takes {fixed_tokens} tokens, context_tokens allows {spec.context_tokens}; shorten it or raise that"
        ]
    context_tokens = spec.context_tokens or fixed_tokens
    room = spec.max_tokens - special_tokens - context_tokens
    taken = f"the {'prompt' if spec.template is None else 'context'} takes {context_tokens} and special tokens {special_tokens}"
    if room < 1:
        return [f"{setting}: {where} leaves no room for text ({taken}); shorten it or raise max_tokens"]
    if spec.min_tokens > room // 2:
        return [f"chunking.min_tokens={spec.min_tokens}: {where} leaves {room} tokens of text a chunk ({taken}); choose 0 to {room // 2}"]
    overlap = f"chunking.overlap_tokens={spec.overlap_tokens}"
    if not chunking.enabled and spec.overlap_tokens:
        return [f"{overlap}: has no effect with chunking.enabled=false; remove one of the two"]
    if spec.overlap_tokens >= room:
        return [f"{overlap}: {where} leaves {room} tokens of text a chunk ({taken}); choose 0 to {room - 1}"]
    return []


def _check_prompts(spec: EmbeddingSpec) -> list[str]:
    """Return the problem of a pooling whose weights would begin after the prompt."""
    if spec.include_prompt:
        return []
    refused, where, advice = [], f"{spec.model!r} leaves the prompt out of pooling", "or set both prompts to ''"
    if "weightedmean" in spec.pooling.split("+"):
        refused.append(f"embedding.pooling={spec.pooling!r}: {where}; choose another, {advice}")
    if spec.template is not None:
        refused.append(f"chunking.template={spec.template!r}: {where}, and a template begins with the prompt; leave it out, {advice}")
    return refused
