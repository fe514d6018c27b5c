"""Settings of a model behind an API → the resolved spec; the server is asked once, before any document is read."""

from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.core.quantization import Floats
from embedder.core.spec import API, EmbeddingSpec, digest
from embedder.model.api_encoder import PROBE_TEXT, ApiClient, ApiEncoder, RefusedError, choose_address
from embedder.model.files.checksum import TOKENIZER_FILES
from embedder.model.files.recipe import PACKAGE, locate_model
from embedder.model.resolve import ResolvedModel, check_room, open_tokenizer

MAX_TOKENS = {"text-embedding-3-small": 8191, "text-embedding-3-large": 8191, "text-embedding-ada-002": 8191}
"""Of OpenAI's own models: an API does not say."""
RESOLVE_SECONDS = 20.0
"""How long a server that does not answer is asked before a run begins: a mistyped address is more likely than an outage."""
SAME_COSINE = 0.999
BYTES = "bytes"


def resolve_api(embedding: EmbeddingConfig, chunking: ChunkingConfig) -> ResolvedModel:
    """Fill every default, and ask the server how many components it gives; one ConfigError holds all that cannot be done."""
    where = f"embedding.model={embedding.model!r}"
    name = embedding.model.removeprefix(API)
    max_tokens = chunking.max_tokens or MAX_TOKENS.get(name)
    if max_tokens is None:
        raise ConfigError(f"chunking.max_tokens: an API does not say how many tokens {embedding.model!r} takes; set it")
    try:
        tokenizer = load_counter(chunking.tokenizer) if chunking.tokenizer else None
        spec = _fill_defaults(embedding, chunking, max_tokens, tokenizer)
        problems = check_api_room(spec, chunking, tokenizer)
        client = ApiClient(spec.model, str(spec.base_url), RESOLVE_SECONDS)
        full_W = client.ask([PROBE_TEXT]).vectors_NW[0]
        spec = spec.model_copy(update={"dim": embedding.dim or len(full_W)})
        problems += check_dim(spec, full_W, client)
    except ModelError as error:
        raise ConfigError(f"{where}: {error}") from error
    if problems:
        raise ConfigError("\n".join(problems))
    return ResolvedModel(spec, tokenizer.to_str() if tokenizer else "", len(full_W), vocab_size=0)


def load_counter(name: str) -> Tokenizer:
    """Load a tokenizer by the name of its model; of one on the hub the tokenizer's files alone are fetched."""
    try:
        if name.startswith(PACKAGE) or Path(name).expanduser().is_dir():
            return open_tokenizer(locate_model(name, None)[0])
        return open_tokenizer(Path(snapshot_download(name, allow_patterns=[*TOKENIZER_FILES, "config.json"])))
    except (OSError, ValueError, ModelError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"chunking.tokenizer={name!r}: no tokenizer to be had from there ({reason})") from error


def _fill_defaults(embedding: EmbeddingConfig, chunking: ChunkingConfig, max_tokens: int, tokenizer: Tokenizer | None) -> EmbeddingSpec:
    name = embedding.model.removeprefix(API)
    return EmbeddingSpec(
        model=embedding.model,
        revision=None,
        model_checksum=f"{name}, tokens counted by {counter_checksum(tokenizer)}",
        depth=0,
        final_norm="none",
        pooling="unknown",
        layer_norm=False,
        prompt=embedding.prompt or "",
        query_prompt=embedding.query_prompt or "",
        max_tokens=max_tokens,
        chunking=chunking.enabled,
        overlap_tokens=chunking.overlap_tokens,
        dim=embedding.dim or 1,
        normalize=embedding.normalize,
        quantization=embedding.quantization,
        base_url=choose_address(embedding.base_url),
        tokenizer=chunking.tokenizer,
    )


def counter_checksum(tokenizer: Tokenizer | None) -> str:
    """Name what counts tokens by its content."""
    return digest(tokenizer.to_str()) if tokenizer else BYTES


def check_api_room(spec: EmbeddingSpec, chunking: ChunkingConfig, tokenizer: Tokenizer | None) -> list[str]:
    """Refuse a prompt or an overlap that leaves no room for text."""
    if tokenizer is None:
        return check_room(spec, chunking, 0, -(-len(spec.prompt.encode()) // 3))
    prompt_tokens = len(tokenizer.encode(spec.prompt, add_special_tokens=False).ids)
    return check_room(spec, chunking, tokenizer.num_special_tokens_to_add(False), prompt_tokens)


def check_dim(spec: EmbeddingSpec, full_W: Floats, client: ApiClient) -> list[str]:
    """Refuse a dim that the model has not, or that the server makes in another way than by cutting: tables cut here would not meet it."""
    where = f"embedding.dim={spec.dim}"
    if spec.quantization == "binary" and spec.dim % 8:
        return [f"{where}: binary packs eight components into a byte; choose a multiple of 8"]
    if spec.dim > len(full_W):
        return [f"{where}: {spec.model!r} gives {len(full_W)} components; choose 1 to {len(full_W)}"]
    if spec.dim == len(full_W) or not spec.normalize:
        return []
    full_D = full_W[: spec.dim]
    try:
        short_D = client.ask([PROBE_TEXT], spec.dim).vectors_NW[0, : spec.dim]
    except RefusedError:
        return []  # takes no dimensions: vectors are cut here
    cosine = float(full_D @ short_D / (np.linalg.norm(full_D) * np.linalg.norm(short_D)))
    if cosine < SAME_COSINE:
        return [f"{where}: what the server gives for dimensions={spec.dim} is not the start of its full vector (cosine {cosine:.3f}); "
                "leave dim out"]  # fmt: skip
    return []


def open_counted(spec: EmbeddingSpec) -> tuple[ApiEncoder, str]:
    """Make the encoder of a spec that was resolved elsewhere, and give the tokenizer that counts for it; '' counts bytes."""
    tokenizer = load_counter(spec.tokenizer) if spec.tokenizer else None
    expected = f"{spec.model.removeprefix(API)}, tokens counted by {counter_checksum(tokenizer)}"
    if spec.model_checksum != expected:
        raise ModelError(f"chunking.tokenizer={spec.tokenizer!r}: is not the tokenizer that the spec was resolved with")
    return ApiEncoder(spec), tokenizer.to_str() if tokenizer else ""
