"""Settings and the model's own files → the resolved spec and a tokenizer that CPU workers rebuild without transformers."""

from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence
from transformers import AutoTokenizer

from embedder.config import ChunkingConfig, EmbeddingConfig
from embedder.errors import ConfigError, ModelError
from embedder.model.files import ModelRecipe, locate_model, read_recipe
from embedder.spec import EmbeddingSpec, FinalNorm


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What every worker needs to know of the model."""

    spec: EmbeddingSpec
    tokenizer_json: str
    """For `tokenizers.Tokenizer.from_str`; neither truncates nor pads."""


def resolve_model(embedding: EmbeddingConfig, chunking: ChunkingConfig) -> ResolvedModel:
    """Fill every default from the model's files; one ConfigError holds all that the model cannot do, a line each."""
    try:
        folder, commit = locate_model(embedding.model, embedding.revision)
        recipe = read_recipe(folder)
        tokenizer = load_tokenizer(recipe)
    except ModelError as error:
        message = str(error)
        raise ConfigError(message if message.startswith("embedding.") else f"embedding.model={embedding.model!r}: {message}") from error
    spec = _fill_defaults(embedding, chunking, recipe, commit)
    problems = [*_check_model(embedding, recipe), *_check_lengths(spec, chunking, recipe, tokenizer), *_check_prompts(spec, recipe)]
    if problems:
        raise ConfigError("\n".join(problems))
    return ResolvedModel(spec, tokenizer.to_str())


def load_tokenizer(recipe: ModelRecipe) -> Tokenizer:
    """Load the Rust tokenizer behind AutoTokenizer, without truncation and padding, lower-casing if the files say so."""
    loaded = AutoTokenizer.from_pretrained(recipe.transformer_folder, trust_remote_code=False, local_files_only=True)
    if not loaded.is_fast:
        raise ModelError(f"tokenizer_config.json: {type(loaded).__name__} has no Rust tokenizer; add a tokenizer.json")
    tokenizer: Tokenizer = loaded.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if recipe.lower_case:
        tokenizer.normalizer = Sequence([Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])])
    return tokenizer


def _fill_defaults(embedding: EmbeddingConfig, chunking: ChunkingConfig, recipe: ModelRecipe, commit: str | None) -> EmbeddingSpec:
    final_norm: FinalNorm = (embedding.final_norm or "apply") if recipe.has_final_norm else "none"
    return EmbeddingSpec(
        model=embedding.model,
        revision=commit,
        model_checksum=recipe.checksum,
        depth=embedding.depth or recipe.num_layers,
        final_norm=final_norm,
        pooling=embedding.pooling or recipe.pooling,
        layer_norm=recipe.layer_norm if embedding.layer_norm is None else embedding.layer_norm,
        prompt=recipe.document_prompt if embedding.prompt is None else embedding.prompt,
        query_prompt=recipe.query_prompt if embedding.query_prompt is None else embedding.query_prompt,
        max_tokens=chunking.max_tokens or recipe.max_tokens,
        chunking=chunking.enabled,
        overlap_tokens=chunking.overlap_tokens,
        dim=embedding.dim or recipe.width,
        normalize=embedding.normalize,
    )


def _check_model(embedding: EmbeddingConfig, recipe: ModelRecipe) -> list[str]:
    problems, name = [], repr(embedding.model)
    if embedding.depth is not None and embedding.depth > recipe.num_layers:
        problems.append(f"embedding.depth={embedding.depth}: {name} has {recipe.num_layers} layers; choose 1 to {recipe.num_layers}")
    if embedding.dim is not None and embedding.dim > recipe.width:
        problems.append(f"embedding.dim={embedding.dim}: {name} gives {recipe.width} components; choose 1 to {recipe.width}")
    if embedding.final_norm is not None and not recipe.has_final_norm:
        problems.append(f"embedding.final_norm={embedding.final_norm!r}: {name} ({recipe.family}) has no final norm; leave it out")
    return problems


def _check_lengths(spec: EmbeddingSpec, chunking: ChunkingConfig, recipe: ModelRecipe, tokenizer: Tokenizer) -> list[str]:
    where = f"chunking.max_tokens={spec.max_tokens}"
    if spec.max_tokens > recipe.position_limit:
        return [f"{where}: {spec.model!r} has positions for {recipe.position_limit} tokens; choose 4 to {recipe.position_limit}"]
    special_tokens = tokenizer.num_special_tokens_to_add(False)
    prompt_tokens = len(tokenizer.encode(spec.prompt, add_special_tokens=False).ids)
    room = spec.max_tokens - special_tokens - prompt_tokens
    taken = f"the prompt takes {prompt_tokens} and special tokens {special_tokens}"
    if room < 1:
        return [f"embedding.prompt={spec.prompt!r}: {where} leaves no room for text ({taken}); shorten it or raise max_tokens"]
    overlap = f"chunking.overlap_tokens={spec.overlap_tokens}"
    if not chunking.enabled and spec.overlap_tokens:
        return [f"{overlap}: has no effect with chunking.enabled=false; remove one of the two"]
    if spec.overlap_tokens >= room:
        return [f"{overlap}: {where} leaves {room} tokens of text a chunk ({taken}); choose 0 to {room - 1}"]
    return []


def _check_prompts(spec: EmbeddingSpec, recipe: ModelRecipe) -> list[str]:
    """Prompt tokens are pooled like any others; a model that leaves them out can only be run without prompts."""
    if recipe.include_prompt:
        return []
    prompts = {"prompt": spec.prompt, "query_prompt": spec.query_prompt}
    return [
        f"embedding.{name}={prompt!r}: {spec.model!r} has include_prompt=false, but prompts are pooled here; set it to ''"
        for name, prompt in prompts.items()
        if prompt
    ]
