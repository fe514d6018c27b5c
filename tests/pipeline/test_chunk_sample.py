"""The sample of a run is the same whatever units, actors and retries its chunks went through."""

import random
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pytest

from embedder.core.fidelity import SAMPLE_CHUNKS
from embedder.core.quantization import fit_ranges, quantize, restore
from embedder.core.spec import EmbeddingSpec, Quantization
from embedder.pipeline.chunk_sample import SAMPLE, ChunkSampler, hash_chunks, merge_samples
from embedder.pipeline.rows import from_ipc
from embedder.table.vectors import column_codes
from tests.core.test_spec import SPEC

COUNT, DIM = 700, 8
DRAW = np.random.default_rng(0)
CHUNKS = [DRAW.integers(0, 30_000, size=size).tolist() for size in DRAW.integers(1, 40, size=COUNT)]
VECTORS = DRAW.normal(size=(COUNT, DIM)).astype(np.float32)
RANGES = fit_ranges(VECTORS)


def ids_of(rows: Sequence[int]) -> pa.ListArray:
    return pa.array([CHUNKS[row] for row in rows], pa.list_(pa.int32()))


def make_sampler(quantization: Quantization = "none") -> ChunkSampler:
    spec: EmbeddingSpec = SPEC.model_copy(update={"quantization": quantization, "dim": DIM})
    return ChunkSampler(spec, RANGES if quantization == "int8" else None)


def merge(drawn: Iterable[bytes]) -> pa.Table:
    sample = SAMPLE.empty_table()
    for candidates in drawn:
        if candidates:
            sample = merge_samples(sample, from_ipc(candidates))
    return sample


def expected_rows() -> list[int]:
    return np.argsort(hash_chunks(ids_of(range(COUNT))))[:SAMPLE_CHUNKS].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_sample_depends_neither_on_order_nor_units_nor_actors_nor_retries(seed: int) -> None:
    shuffle = random.Random(seed)
    rows, samplers, drawn = list(range(COUNT)) * 2, [make_sampler() for _ in range(3)], []
    shuffle.shuffle(rows)
    while rows:
        unit, rows = rows[: (size := shuffle.randint(0, 90))], rows[size:]
        sampler = shuffle.choice(samplers)
        calls = [sampler.draw(ids_of(unit), VECTORS[unit]) for _ in range(shuffle.choice([1, 1, 2]))]
        drawn.append(calls[-1])  # the row of an earlier call was lost with its node
    sample = merge(drawn)
    assert sample.schema.equals(SAMPLE)
    assert sample["token_ids"].to_pylist() == [CHUNKS[row] for row in expected_rows()]
    np.testing.assert_array_equal(column_codes(sample["vector"]), VECTORS[expected_rows()])


def test_an_actor_draws_ever_fewer_candidates() -> None:
    sampler = make_sampler()
    units = [list(range(start, start + 70)) for start in range(0, COUNT, 70)]
    sizes = [from_ipc(drawn).num_rows if (drawn := sampler.draw(ids_of(unit), VECTORS[unit])) else 0 for unit in units]
    assert sizes[0] == SAMPLE_CHUNKS
    assert sum(sizes[5:]) < 2 * SAMPLE_CHUNKS


def test_all_chunks_of_a_small_run_are_in_its_sample_and_equal_ones_once() -> None:
    rows = [3, 5, 3, 9]
    sample = merge([make_sampler().draw(ids_of(rows), VECTORS[rows])])
    assert sorted(sample["token_ids"].to_pylist()) == sorted(CHUNKS[row] for row in (3, 5, 9))
    assert make_sampler().draw(ids_of([]), VECTORS[:0]) == b""


@pytest.mark.parametrize("quantization", ["int8", "binary"])
def test_vectors_are_those_that_codes_stand_for(quantization: Quantization) -> None:
    ranges = RANGES if quantization == "int8" else None
    codes = quantize(VECTORS, quantization, ranges)
    sample = merge([make_sampler(quantization).draw(ids_of(range(COUNT)), codes)])
    np.testing.assert_array_equal(column_codes(sample["vector"]), restore(codes, quantization, ranges)[expected_rows()])


def test_every_chunk_is_as_likely_whatever_its_length() -> None:
    lengths = np.array([len(chunk) for chunk in CHUNKS])
    hashes = hash_chunks(ids_of(range(COUNT)))
    assert abs(np.corrcoef(lengths, hashes.astype(np.float64))[0, 1]) < 0.1
    assert np.histogram(hashes >> np.uint64(61), bins=8)[0].min() > 50
    assert np.array_equal(hash_chunks(ids_of(range(100, 200))), hashes[100:200]), "a slice too"
    assert np.array_equal(hash_chunks(ids_of(range(COUNT)).slice(100, 100)), hashes[100:200])
