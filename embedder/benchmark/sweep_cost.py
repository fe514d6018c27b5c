"""Compare the cost of a sweep's whole grid with one plain pass: one pass taps every depth, and every dim is truncated from the taps."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from embedder.benchmark.encoder_and_job import tokenize_texts
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.quantization import cut_vectors
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import find_recipe
from embedder.model.pooling import Head, finish_states, load_steps
from embedder.model.resolve import resolve_model
from embedder.sweep.grid import choose_depths, choose_dims
from embedder.sweep.timing import Run, compare


@dataclass(frozen=True, slots=True)
class GridPrice:
    """Cost of one tapped pass, truncated to every depth × dim, relative to one plain pass of the full model."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    tokens: int
    plain_tokens_per_second: float
    ratio: float
    """Time of the whole grid over time of the plain pass; median over rounds."""

    def text(self) -> str:
        """Return one line."""
        grid = f"{len(self.depths)} depths x {len(self.dims)} dims"
        return f"vectors of a sweep's whole grid ({grid}): {self.ratio:.2f} x the time of one plain pass over {self.tokens:,} tokens"


def measure_grid_price(model: str, texts: Sequence[str], token_budget: int, rounds: int) -> GridPrice:
    """Time both in turn, without tokenizing and scoring."""
    resolved = resolve_model(EmbeddingConfig(model=model), ChunkingConfig())
    recipe = find_recipe(resolved.spec)
    head = Head(load_steps(recipe.steps), resolved.spec.model_copy(update={"normalize": False}))
    depths, dims = choose_depths(recipe.num_layers, ()), choose_dims(recipe.width, ())
    token_ids = tokenize_texts(texts, resolved)["token_ids"].combine_chunks()
    encoder = Encoder.load(resolved.spec, "cpu", "auto")
    contenders: dict[str, Run] = {
        "plain": partial(encoder.encode, token_ids, token_budget),
        "grid": partial(make_grid, encoder, head, token_ids, token_budget, depths, dims),
    }
    plain, grid = compare(contenders, len(token_ids.values), rounds)
    return GridPrice(depths, dims, len(token_ids.values), plain.tokens_per_second, 1 / grid.ratio)


def make_grid(
    encoder: Encoder, head: Head, token_ids: pa.ListArray, token_budget: int, depths: Sequence[int], dims: Sequence[int]
) -> float:
    """Compute the vectors of every depth and dim; return a figure that depends on all of them."""
    tapped = encoder.tap(token_ids, token_budget, depths)
    widths = (finish_states(tapped[depth], head) for depth in depths)
    return statistics.fmean(float(cut_vectors(vectors_NW, dim, normalize=True)[0, 0]) for vectors_NW in widths for dim in dims)
