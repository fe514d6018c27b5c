"""The full model over a sample of chunks: the vectors that those of a calibrated exit stand for. Does not import Ray."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from embedder.config.compute import CPU_TOKENS
from embedder.core.errors import ModelError
from embedder.core.quantization import Floats
from embedder.core.spec import EmbeddingSpec
from embedder.observe.process import gc_tuned
from embedder.pipeline.actors import choose_token_budget
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import from_ipc


def encode_full(spec: EmbeddingSpec, sample: bytes, pool: Pool) -> Iterator[Floats]:
    """Load the full model of a spec with a calibrated exit, and yield its vectors of the chunks of a SAMPLE, at full width: (N, W)."""
    with gc_tuned():
        from embedder.model.encoder import Encoder
        from embedder.model.files.recipe import width_of
        from embedder.model.runtime import refusing_device_errors, set_threads

        set_threads(pool.threads)
        with refusing_device_errors(pool.device):
            full = spec.for_passages().model_copy(update={"dim": width_of(spec), "rotation": None})
            encoder = Encoder.load(full, pool.device, pool.dtype, layout=pool.layout)
            token_budget = choose_token_budget(encoder, pool)
    full_NW: Floats = encoder.encode(from_ipc(sample)["token_ids"].combine_chunks(), token_budget).vectors_ND
    if not np.isfinite(full_NW).all():
        raise ModelError("embedding: vectors of the full model hold NaN or infinity; set compute.dtype to bfloat16 or float32")
    yield full_NW


def beside_actors(pool: Pool) -> Pool:
    """Return a pool that runs while actors hold all resources: on CPUs, of which it reserves none."""
    budget = pool.token_budget or CPU_TOKENS
    return replace(pool, device="cpu", dtype="auto", layout="auto", token_budget=budget, num_gpus=0.0, num_cpus=0.0)
