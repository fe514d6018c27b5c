"""Models that a sweep compares: texts → vectors of full width by depth, each text run once, whatever is then made of it.

N = texts, H = hidden size, W = width before the cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from embedder.config.compute import CPU_TOKENS, Backend, ComputeConfig, Layout
from embedder.core.rotation import digest_array
from embedder.core.schema import DOCUMENTS
from embedder.core.spec import EmbeddingSpec, Pooling, digest
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.calibration import FORMAT, Calibration
from embedder.model.encoder import Encoder
from embedder.model.exits import Exit, ExitPooler
from embedder.model.files.recipe import locate_model, read_recipe, width_of
from embedder.model.pooling import Head, finish_states, load_steps
from embedder.model.resolve import ResolvedModel
from embedder.sweep.cache import Cache, digest_texts
from embedder.text.chunking import chunk_documents
from embedder.text.tokenizing import load_tokenizer

Floats = npt.NDArray[np.float32]
Side = Literal["document", "query"]
Report = Callable[[str, int, int], None]
"""Called with a name, how much of it is done, and how much there is."""

BLOCK_TOKENS = 1 << 15
"""Tokens of a block on a CPU: a few seconds of work, and the most that an interruption loses."""
BUDGETS_A_BLOCK = 8


@dataclass(frozen=True, slots=True)
class Machine:
    """What the study computes on, with nothing left open."""

    device: str
    dtype: str
    token_budget: int
    layout: Layout = "auto"
    backend: Backend = "torch"
    """Of what is timed; taps are torch's."""

    @property
    def block_tokens(self) -> int:
        """Tokens that are run, and kept, at a time."""
        return max(BLOCK_TOKENS, BUDGETS_A_BLOCK * self.token_budget)

    def around_float8(self) -> "Machine":
        """Give what computes around layers in float8, whatever the others compute in."""
        return replace(self, dtype="bfloat16", backend="compiled" if self.backend == "compiled" else "torch")


def choose_machine(compute: ComputeConfig) -> Machine:
    """Fill in what the settings leave open from what this machine has."""
    device = compute.device if compute.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    budget = compute.token_budget or (65536 if device == "cuda" else CPU_TOKENS)
    return Machine(device, compute.dtype, budget, compute.layout, compute.backend)


class Candidate(Protocol):
    """A model of the comparison."""

    @property
    def name(self) -> str:
        """How rows call it."""
        ...

    @property
    def width(self) -> int:
        """Components before the cut."""
        ...

    def widths(self, texts: Sequence[str], side: Side, depth: int) -> Floats:
        """Give the vectors of an encoder of that depth, before cut and L2, shape (N, W)."""
        ...


@dataclass(frozen=True)
class CalibratedExit:
    """A way out of a depth into the full model's space: what makes it usable that was never trained for it."""

    calibration: Calibration
    depth: int
    hidden_size: int

    @property
    def layers(self) -> tuple[int, ...]:
        """What it reads of a pass of the model, 0 being the embedding layer."""
        return self.calibration.maps[self.depth].layers

    def apply(self, pooling: Pooling, states: Mapping[int, Floats]) -> Floats:
        """Map the states of its layers, in every pooling of an exit, to shape (N, W), uncut."""
        exit_map = Exit(self.calibration.maps[self.depth], ExitPooler(pooling, self.calibration.weighing), self.hidden_size)
        side_by_side_NF = np.concatenate([states[layer] for layer in self.layers], axis=1)
        vectors_NW: Floats = exit_map(torch.from_numpy(side_by_side_NF)).numpy()
        return vectors_NW


def open_exits(calibration: Calibration, depths: Sequence[int], hidden_size: int) -> dict[int, CalibratedExit]:
    """Give the ways out that an artifact has for these depths."""
    return {depth: CalibratedExit(calibration, depth, hidden_size) for depth in depths if depth in calibration.maps}


class Transformer:
    """A model of this machine, its texts tapped at all wanted depths in one pass."""

    def __init__(
        self,
        name: str,
        resolved: ResolvedModel,
        depths: Sequence[int],
        machine: Machine,
        cache: Cache,
        report: Report,
        exits: Mapping[int, CalibratedExit] | None = None,
    ) -> None:
        self.name, self.resolved, self.machine = name, resolved, machine
        self.asking = self  # what queries are embedded by
        ways = tuple((exits or {}).values())
        self.tapped = tuple(sorted({*depths, *(layer for each in ways for layer in each.layers)}))
        self.weighing = ways[0].calibration.weighing if ways else None
        self._cache, self._report, self._exits = cache, report, exits
        wide = resolved.spec.model_copy(update={"dim": width_of(resolved.spec), "normalize": False})
        self._head = Head(load_steps(read_recipe(locate_model(wide.model, wide.revision)[0]).steps), wide)

    def in_float8(self) -> "Transformer":
        """Give the same with layers in float8, asked by this one."""
        resolved = replace(self.resolved, spec=self.spec.model_copy(update={"float8": True}))
        other = Transformer(self.name, resolved, self.tapped, self.machine.around_float8(), self._cache, self._report, self._exits)
        other.asking = self
        return other

    @property
    def spec(self) -> EmbeddingSpec:
        """The spec at full depth and width."""
        return self.resolved.spec

    @property
    def width(self) -> int:
        """Components before the cut."""
        return self._head.dim

    @cached_property
    def _encoder(self) -> Encoder:
        """Loaded at the deepest depth tapped, and only if a text has not been run yet."""
        spec = self.spec.model_copy(update={"depth": max(self.tapped)})
        return Encoder.load(spec, self.machine.device, self.machine.dtype, layout=self.machine.layout)

    def widths(self, texts: Sequence[str], side: Side, depth: int) -> Floats:
        """Give the vectors of an encoder of that depth, before cut and L2."""
        size = self.resolved.hidden_size
        own = 0 if self.weighing is None else size * ExitPooler(self.spec.pooling, self.weighing).own
        states_NF = self.states(texts, side)[depth]()
        return finish_states(states_NF[:, own : own + size], self._head)

    def exit_widths(self, texts: Sequence[str], side: Side, exit_: CalibratedExit) -> Floats:
        """Give the vectors of a calibrated exit, before cut and L2."""
        states = self.states(texts, side)
        return exit_.apply(self.spec.pooling, {layer: states[layer]() for layer in exit_.layers})

    def states(self, texts: Sequence[str], side: Side) -> dict[int, Callable[[], Floats]]:
        """Tap what is not in the cache, in one pass, and give by depth how to read the pooled states, shape (N, P·H)."""
        spec = self._spec_of(side)
        same = {"model_checksum", "final_norm", "prompt", "max_tokens", "recipe_version"}
        pooled = self.spec.pooling if self.weighing is None else digest_weighing(self.weighing)
        computing = (self.machine.device, self.machine.dtype, *(["float8"] if spec.float8 else []))
        key = digest(spec.model_dump(include=same), pooled, *computing, digest_texts(texts))
        names = self._cache.names(key)
        if not {f"all-{depth}" for depth in self.tapped} <= names:
            self._tap(key, names, tokenize(texts, self.resolved, spec))
        return {depth: partial(self._read, key, depth) for depth in self.tapped}

    def _spec_of(self, side: Side) -> EmbeddingSpec:
        prompt = self.spec.prompt if side == "document" else self.spec.query_prompt
        return self.spec.model_copy(update={"prompt": prompt, "chunking": False, "overlap_tokens": 0})

    def _tap(self, key: str, names: set[str], token_ids: pa.ListArray) -> None:
        blocks = plan_blocks(np.diff(token_ids.offsets.to_numpy()), self.machine.block_tokens)
        name = self.name + (", layers in float8" if self.spec.float8 else "")
        self._report(name, 0, len(token_ids))
        for start, stop in blocks:
            lacking = [depth for depth in self.tapped if f"{start}-{stop}-{depth}" not in names and f"all-{depth}" not in names]
            if lacking:
                states = self._encoder.tap(token_ids.slice(start, stop - start), self.machine.token_budget, lacking, self.weighing)
                for depth, states_NH in states.items():
                    self._cache.write(key, f"{start}-{stop}-{depth}", states_NH)
            self._report(name, stop, len(token_ids))
        for depth in self.tapped:
            self._cache.write(key, f"all-{depth}", np.array([*(start for start, _ in blocks), len(token_ids)]))

    def _read(self, key: str, depth: int) -> Floats:
        bounds = self._cache.read(key, f"all-{depth}").tolist()
        return np.concatenate([self._cache.read(key, f"{start}-{stop}-{depth}") for start, stop in pairwise(bounds)])


def tokenize(texts: Sequence[str], resolved: ResolvedModel, spec: EmbeddingSpec) -> pa.ListArray:
    """Turn texts into token ids as the spec cuts them: with chunking off, one row a text."""
    rows = len(texts)
    columns = {"doc_id": [""] * rows, "text": list(texts), "content_hash": [""] * rows, "shard": [""] * rows, "row": list(range(rows))}
    chunks = chunk_documents(pa.table(columns, schema=DOCUMENTS), load_tokenizer(resolved.tokenizer_json), spec)
    return chunks["token_ids"].combine_chunks()


def digest_weighing(weighing: AttentionPooling) -> str:
    """Name how states are pooled for exits."""
    return digest(FORMAT, digest_array(weighing.token_weights_V), digest_array(weighing.queries_TQX))


def plan_blocks(lengths: npt.NDArray[np.int32], block_tokens: int) -> list[tuple[int, int]]:
    """Cut rows, in order, into blocks of about so many tokens."""
    numbers = (np.cumsum(lengths) - lengths) // block_tokens
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    return list(zip(starts, [*starts[1:], len(lengths)], strict=True))
