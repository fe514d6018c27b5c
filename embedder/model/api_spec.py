"""Settings of a model behind an API → the resolved spec, by a request before any document is read."""

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
from embedder.model.files.tokenizer import open_tokenizer
from embedder.model.resolve import ResolvedModel, check_room, choose_chunking

MAX_TOKENS = {"text-embedding-3-small": 8191, "text-embedding-3-large": 8191, "text-embedding-ada-002": 8191}
"""OpenAI's models; the API does not report it."""
RESOLVE_SECONDS = 20.0
"""Time to retry before a run: a mistyped address is more likely than an outage."""
SAME_COSINE = 0.999


def resolve_api(embedding: EmbeddingConfig, chunking: ChunkingConfig) -> ResolvedModel:
    """Return the spec with every default filled in, and the server's number of components; one ConfigError lists all problems."""
    max_tokens = chunking.max_tokens or MAX_TOKENS.get(embedding.model.removeprefix(API))
    if max_tokens is None:
        raise ConfigError(f"chunking.max_tokens: an API does not report how many tokens {embedding.model!r} accepts; set it")
    try:
        tokenizer = load_counter(chunking.tokenizer) if chunking.tokenizer else None
        spec = _fill_defaults(embedding, chunking, max_tokens, tokenizer)
        problems = check_room(spec, chunking, tokenizer)
        client = ApiClient(spec.model, str(spec.base_url), RESOLVE_SECONDS)
        (full_W,), _ = client.request([PROBE_TEXT])
        spec = spec.model_copy(update={"dim": embedding.dim or len(full_W)})
        problems += check_dim(spec, full_W, client)
    except ModelError as error:
        raise ConfigError(f"embedding.model={embedding.model!r}: {error}") from error
    if problems:
        raise ConfigError("\n".join(problems))
    return ResolvedModel(spec, tokenizer.to_str() if tokenizer else "", len(full_W), vocab_size=0)


def load_counter(name: str) -> Tokenizer:
    """Load the tokenizer of a model; from the hub, download the tokenizer's files only."""
    try:
        if name.startswith(PACKAGE) or Path(name).expanduser().is_dir():
            return open_tokenizer(locate_model(name, None)[0])
        return open_tokenizer(Path(snapshot_download(name, allow_patterns=[*TOKENIZER_FILES, "config.json"])))
    except (OSError, ValueError, ModelError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"chunking.tokenizer={name!r}: no tokenizer found ({reason}); give a model with a tokenizer.json") from error


def _fill_defaults(embedding: EmbeddingConfig, chunking: ChunkingConfig, max_tokens: int, tokenizer: Tokenizer | None) -> EmbeddingSpec:
    return EmbeddingSpec(
        model=embedding.model,
        revision=None,
        model_checksum=describe_api(embedding.model, tokenizer),
        depth=0,
        final_norm="none",
        pooling="unknown",
        layer_norm=False,
        prompt=embedding.prompt or "",
        query_prompt=embedding.query_prompt or "",
        **choose_chunking(chunking, embedding.prompt or "", max_tokens),
        dim=embedding.dim or 1,
        normalize=embedding.normalize is not False,
        quantization=embedding.quantization,
        base_url=choose_address(embedding.base_url),
        tokenizer=chunking.tokenizer,
    )


def describe_api(model: str, tokenizer: Tokenizer | None) -> str:
    """Return the checksum of a model behind an API: its name, and a digest of the tokenizer that counts its tokens."""
    return f"{model.removeprefix(API)}, tokens counted by {digest(tokenizer.to_str()) if tokenizer else 'bytes'}"


def check_dim(spec: EmbeddingSpec, full_W: Floats, client: ApiClient) -> list[str]:
    """Return the problems of a dim that the model lacks, or that the server does not compute by truncation, as recut tables do."""
    where = f"embedding.dim={spec.dim}"
    if spec.quantization == "binary" and spec.dim % 8:
        return [f"{where}: binary packs eight components into a byte; choose a multiple of 8"]
    if spec.dim > len(full_W):
        return [f"{where}: {spec.model!r} has {len(full_W)} components; choose 1 to {len(full_W)}"]
    if spec.dim == len(full_W) or not spec.normalize:
        return []
    try:
        (asked_W,), _ = client.request([PROBE_TEXT], spec.dim)
    except RefusedError:
        return []  # no parameter `dimensions`: ApiEncoder truncates
    full_D, short_D = full_W[: spec.dim], asked_W[: spec.dim]
    cosine = float(full_D @ short_D / (np.linalg.norm(full_D) * np.linalg.norm(short_D)))
    if cosine < SAME_COSINE:
        return [f"{where}: the server's vector for dimensions={spec.dim} is not the start of its full vector (cosine {cosine:.3f}); "
                "leave dim out"]  # fmt: skip
    return []


def open_counted(spec: EmbeddingSpec) -> tuple[ApiEncoder, str]:
    """Return the encoder of a resolved spec and its tokenizer's JSON, '' to count bytes; ModelError if the tokenizer has changed."""
    tokenizer = load_counter(spec.tokenizer) if spec.tokenizer else None
    if spec.model_checksum != describe_api(spec.model, tokenizer):
        raise ModelError(f"chunking.tokenizer={spec.tokenizer!r}: not the tokenizer that the spec was resolved with; give that one")
    return ApiEncoder(spec), tokenizer.to_str() if tokenizer else ""
