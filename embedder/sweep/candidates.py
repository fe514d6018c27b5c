"""Models that a sweep compares: texts → full-width vectors by depth. Each text is run once and its states are cached.

N = texts, or chunks of documents, H = hidden size, W = width before the cut.
"""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from embedder.config.compute import CPU_TOKENS, Backend, ComputeConfig, Layout
from embedder.core.context import read_contexts
from embedder.core.quantization import Floats
from embedder.core.rotation import digest_array
from embedder.core.spec import EmbeddingSpec, digest
from embedder.core.storage import Location
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.calibration import FORMAT, Calibration
from embedder.model.encoder import Encoder
from embedder.model.exits import Exit, ExitPooler
from embedder.model.files.recipe import find_recipe, width_of
from embedder.model.late_chunking import Spans, read_passes
from embedder.model.neurons import KeptNeurons
from embedder.model.pooling import Head, finish_states, load_steps
from embedder.model.resolve import ResolvedModel
from embedder.text.chunking import Chunker
from embedder.text.tokenizing import load_tokenizer

Side = Literal["document", "query"]
Report = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""

BLOCK_TOKENS = 1 << 15
"""Tokens of a block on a CPU: a few seconds of work, and the most that an interruption loses."""
BUDGETS_A_BLOCK = 8


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware settings of a sweep, all resolved."""

    device: str
    dtype: str
    token_budget: int
    layout: Layout = "auto"
    backend: Backend = "torch"
    """Of timed encoders; states are always tapped with torch."""

    @property
    def block_tokens(self) -> int:
        """Tokens that are run and cached at a time."""
        return max(BLOCK_TOKENS, BUDGETS_A_BLOCK * self.token_budget)

    def for_float8(self) -> "Machine":
        """Return the settings for a model with layers in float8."""
        return replace(self, dtype="bfloat16", backend="compiled" if self.backend == "compiled" else "torch")


def choose_machine(compute: ComputeConfig) -> Machine:
    """Return the settings with defaults for this machine."""
    device = compute.device if compute.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    budget = compute.token_budget or (65536 if device == "cuda" else CPU_TOKENS)
    return Machine(device, compute.dtype, budget, compute.layout, compute.backend)


class Cache:
    """Arrays by key and name in one folder; each file is written whole or not at all, so an interrupted sweep resumes."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def names(self, key: str) -> set[str]:
        """Return the names cached under a key."""
        return {each.uri.rpartition("/")[2].removesuffix(".npy") for each in self._folder.child(key).open().list_folder()}

    def read(self, key: str, name: str) -> npt.NDArray[Any]:
        """Read one array."""
        with self._folder.child(f"{key}/{name}.npy").open().open_input() as file:
            array: npt.NDArray[Any] = np.load(io.BytesIO(file.read()), allow_pickle=False)
        return array

    def write(self, key: str, name: str, array: npt.NDArray[Any]) -> None:
        """Write one array, unless it exists."""
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        self._folder.child(f"{key}/{name}.npy").open().write_once(buffer.getvalue())


@dataclass(frozen=True, slots=True)
class Chunks:
    """Documents cut by one chunking, in order."""

    token_ids: pa.ListArray
    """Of each chunk, or of each pass of late chunking."""
    starts_D: npt.NDArray[np.int64]  # noqa: N815
    """The first chunk of each document, which has at least one."""
    spans: Spans | None = None
    """The chunks in the passes of late chunking."""

    def __len__(self) -> int:
        return len(self.token_ids if self.spans is None else self.spans.lengths_N)

    @property
    def digest(self) -> str:
        """Hash of the tokens and of where each chunk begins."""
        arrays = [self.token_ids.flatten().to_numpy(), self.token_ids.value_lengths().to_numpy()]
        arrays += [] if self.spans is None else [self.spans.chunks_S, self.spans.starts_N, self.spans.lengths_N]
        return digest(*map(digest_array, arrays))

    def take(self, rows: npt.NDArray[np.int64]) -> "Chunks":
        """Return these rows of token ids, with their chunks, as documents of their own."""
        spans = self.spans and self.spans.take(rows)
        return Chunks(self.token_ids.take(pa.array(rows)), np.arange(len(rows)) if spans is None else spans.chunks_S[:-1], spans)


Texts = Sequence[str] | Chunks


class Candidate(Protocol):
    """A model of the comparison."""

    name: str
    width: int
    """Components before the cut."""

    def embed(self, texts: Texts, side: Side, depth: int) -> Floats:
        """Return vectors at that depth before cut and L2, shape (N, W)."""
        ...


class Transformer:
    """A model on this machine; one pass over the texts taps all depths, and the layers that calibrated exits at these depths read."""

    def __init__(
        self,
        name: str,
        resolved: ResolvedModel,
        depths: Sequence[int],
        machine: Machine,
        cache: Cache,
        report: Report,
        calibration: Calibration | None = None,
        neurons: KeptNeurons | None = None,
    ) -> None:
        self.name, self.resolved, self.spec, self.machine = name, resolved, resolved.spec, machine
        self.query_model = self
        """The model that embeds queries: the same without float8."""
        self.neurons = neurons
        self.exit_model = self
        """The model whose states exits read: the same with the neurons of their calibration."""
        if calibration and calibration.neurons and neurons is None:
            self.exit_model = Transformer(name, resolved, depths, machine, cache, report, calibration, calibration.neurons)
        self.exits = {depth: each for depth, each in calibration.maps.items() if depth in depths} if calibration else {}
        self.pooling = calibration.attention_pooling if calibration and self.exits else None
        self.tapped = tuple(sorted({*depths, *(layer for each in self.exits.values() for layer in each.layers)}))
        self._encoder = functools.cache(self._load_encoder)
        self._depths, self._cache, self._report, self._calibration = depths, cache, report, calibration
        wide = self.spec.model_copy(update={"dim": width_of(self.spec), "normalize": False})
        self.width = wide.dim
        self._head = Head(load_steps(find_recipe(wide).steps), wide)

    def in_float8(self) -> "Transformer":
        """Return the model with layers in float8; this one embeds its queries."""
        resolved = replace(self.resolved, spec=self.spec.model_copy(update={"float8": True}))
        machine = self.machine.for_float8()
        other = Transformer(self.name, resolved, self._depths, machine, self._cache, self._report, self._calibration)
        other.query_model = self
        return other

    def _load_encoder(self, adapter: str | None, unpooled: str) -> Encoder:
        """Return the deepest depth tapped, loaded only if a text is not cached."""
        spec = self.spec.model_copy(update={"depth": max(self.tapped), "adapter": adapter, "prompt": unpooled})
        return Encoder.load(spec, self.machine.device, self.machine.dtype, layout=self.machine.layout, neurons=self.neurons)

    def embed(self, texts: Texts, side: Side, depth: int) -> Floats:
        """Return vectors of an encoder cut at that depth, before cut and L2, shape (N, W)."""
        states_NF = self._states(texts, side)(depth)
        if self.pooling is not None:
            own = ExitPooler(self.spec.pooling, self.pooling).own
            states_NF = np.split(states_NF, self.pooling.num_poolings, axis=1)[own]
        return finish_states(states_NF, self._head)

    def embed_exit(self, texts: Texts, side: Side, depth: int) -> Floats:
        """Return vectors of the calibrated exit at that depth, before cut and L2, shape (N, W)."""
        exit_map = self.exits[depth]
        assert self.pooling is not None
        exit_ = Exit(exit_map, ExitPooler(self.spec.pooling, self.pooling), self.resolved.hidden_size)
        read = self.exit_model._states(texts, side)
        states_NF = np.concatenate([read(layer) for layer in exit_map.layers], axis=1)
        vectors_NW: Floats = exit_(torch.from_numpy(states_NF)).numpy()
        return vectors_NW

    def _states(self, texts: Texts, side: Side) -> Callable[[int], Floats]:
        """Tap what is not cached, in one pass, and return a reader of pooled states by layer, shape (N, P·H)."""
        spec = self._spec_of(side)
        same = {"model_checksum", "final_norm", "prompt", "max_tokens", "recipe_version"}
        pooled = self.spec.pooling if self.pooling is None else digest_pooling(self.pooling)
        differing = [*(["float8"] if spec.float8 else []), spec.adapter, None if spec.include_prompt else "without prompt"]
        if self.neurons is not None:
            differing.append(digest(*map(digest_array, self.neurons.tensors().values())))
        computing = (self.machine.device, self.machine.dtype, *filter(None, differing))
        own = texts.digest if isinstance(texts, Chunks) else digest_texts(texts)
        key = digest(spec.model_dump(include=same), pooled, *computing, own)
        names = self._cache.names(key)
        if not {f"all-{layer}" for layer in self.tapped} <= names:
            self._tap(key, names, texts if isinstance(texts, Chunks) else cut_documents(texts, self.resolved, spec), spec)
        return partial(self._read, key)

    def _spec_of(self, side: Side) -> EmbeddingSpec:
        """Return the spec of whole texts, truncated."""
        spec = self.spec
        prompt, adapter = (spec.prompt, spec.adapter) if side == "document" else (spec.query_prompt, spec.query_adapter)
        return spec.for_passages().model_copy(update={"prompt": prompt, "adapter": adapter, "float8": spec.float8})

    def _tap(self, key: str, names: set[str], chunks: Chunks, spec: EmbeddingSpec) -> None:
        num_rows = len(chunks.token_ids)
        blocks = plan_blocks(np.diff(chunks.token_ids.offsets.to_numpy()), self.machine.block_tokens)
        name = self.name + (", layers in float8" if self.spec.float8 else "")
        self._report(name, 0, num_rows)
        for start, stop in blocks:
            missing = [depth for depth in self.tapped if f"{start}-{stop}-{depth}" not in names and f"all-{depth}" not in names]
            if missing:
                encoder = self._encoder(spec.adapter, "" if spec.include_prompt else spec.prompt)
                block = chunks.take(np.arange(start, stop))
                states = encoder.tap(block.token_ids, self.machine.token_budget, missing, self.pooling, block.spans)
                for depth, states_NH in states.items():
                    self._cache.write(key, f"{start}-{stop}-{depth}", states_NH)
            self._report(name, stop, num_rows)
        for depth in self.tapped:
            self._cache.write(key, f"all-{depth}", np.array([*(start for start, _ in blocks), num_rows]))

    def _read(self, key: str, layer: int) -> Floats:
        bounds = self._cache.read(key, f"all-{layer}").tolist()
        return np.concatenate([self._cache.read(key, f"{start}-{stop}-{layer}") for start, stop in pairwise(bounds)])


def tokenize(texts: Sequence[str], resolved: ResolvedModel, spec: EmbeddingSpec) -> pa.ListArray:
    """Return the token ids of the texts' chunks: one chunk a text if the spec turns chunking off."""
    return cut_documents(texts, resolved, spec).token_ids


def cut_documents(texts: Sequence[str], resolved: ResolvedModel, spec: EmbeddingSpec, columns: pa.Table | None = None) -> Chunks:
    """Cut texts as the spec does; its template and format read the columns `shard` and `context:NAME`, a row a text."""
    known = pa.table({"shard": [""] * len(texts)}) if columns is None else columns
    chunks = Chunker(load_tokenizer(resolved.tokenizer_json), spec).chunk(texts, read_contexts(known, spec))
    token_ids, spans = read_passes(chunks)
    return Chunks(token_ids, np.flatnonzero(chunks["chunk"].to_numpy() == 0), spans)


def digest_texts(texts: Sequence[str]) -> str:
    """Hash texts in order; lengths are hashed too, so that no two lists share a digest."""
    hashed = blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()


def digest_pooling(pooling: AttentionPooling) -> str:
    """Hash the pooling that exits read."""
    return digest(FORMAT, digest_array(pooling.token_weights_V), digest_array(pooling.queries_TQX))


def plan_blocks(lengths: npt.NDArray[np.int32], block_tokens: int) -> list[tuple[int, int]]:
    """Split rows, in order, into blocks of about `block_tokens` tokens."""
    numbers = (np.cumsum(lengths) - lengths) // block_tokens
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    return list(zip(starts, [*starts[1:], len(lengths)], strict=True))
