"""Documents of a sample → attention-pooling queries, trained so that a linear map recovers the full model's vectors from the states.

The model is frozen. While it runs over a batch, each layer's states are pooled by the current queries. A linear head for each depth
corrects the predictions of a ridge map fitted on the starting queries. The heads are then discarded, and ridge maps are fitted again.
N = chunks, B = chunks of a batch, T = layers, Q = queries, H = hidden size, F = features, W = the full model's width.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import get_cosine_schedule_with_warmup

from embedder.calibrate.config import AttentionSettings
from embedder.calibrate.memory import choose_chunks
from embedder.calibrate.ridge import Features
from embedder.calibrate.row_maps import map_rows, multiply_rows
from embedder.calibrate.token_states import TokenStates, open_token_states
from embedder.core.fidelity import unit
from embedder.core.quantization import Floats
from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import UNQUERIED, AttentionPooling
from embedder.model.batches import Batch, BatchLayout, make_layout
from embedder.model.encoder import Encoder
from embedder.model.exits import ExitPooler, normalise_states
from embedder.model.files.families import find_family
from embedder.model.files.model_config import load_config
from embedder.model.files.recipe import find_recipe
from embedder.model.loading import load_layers, resolve_dtype
from embedder.model.results import ExitStates
from embedder.model.runtime import set_threads
from embedder.model.taps import tap_layers
from embedder.pipeline.actors import choose_token_budget
from embedder.pipeline.pool import Pool
from embedder.pipeline.tap_actor import Known, Tapping, chunk, mix_unit

Rows = npt.NDArray[np.int64]

HEAD_RATE = 0.04
"""Learning rate of the heads, as a share of the queries': thousands of features move each component of a vector at once."""
WARM_UP = 0.06
"""Share of the steps over which the learning rate rises, before it falls to 0 along a cosine."""


@dataclass(frozen=True, slots=True)
class PoolingTask:
    """Documents and settings of one training of the queries."""

    tapping: Tapping
    """With the starting queries."""
    held_out: pa.Table
    """DOCUMENTS that decide whether the trained queries are used."""
    units: Sequence[pa.Table]
    """DOCUMENTS to train on, as they are tapped later."""
    first: int
    """Number of the first of these units."""
    features: Features
    """Of the layers that maps read."""
    settings: AttentionSettings
    keeps: bool = False
    """Whether the chunks trained on are known to the tapping afterward."""

    @property
    def spec(self) -> EmbeddingSpec:
        """The full model's."""
        return self.tapping.spec


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Chunks, those held out first: their token ids and the full model's vectors."""

    token_ids: pa.ListArray
    full_NW: Floats  # noqa: N815
    num_held_out: int


def train_attention_pooling(task: PoolingTask, pool: Pool) -> Iterator[str | Tapping]:
    """Yield lines of progress, then the tapping with the trained queries, or the given one if it maps better on chunks held out.

    On a CPU the states of all tokens lie on disk where it has room, in bfloat16, and the layers run once; else they run in each epoch.
    Memory holds the pooled states of all chunks, and a batch's token states of every layer read: with 12 layers of 768, all depths and
    5,400 chunks of 256 tokens, 0.8 GB and 0.3 GB, and 0.8 GB for heads and their moments; the disk would hold 25 GB.
    """
    set_threads(pool.threads)
    torch.manual_seed(task.tapping.seed)
    started, read, layers = time.perf_counter(), task.features.tapped, _tapped_layers(task)
    token_ids, num_held_out = draw_training_set(task)
    with tempfile.TemporaryDirectory(prefix="embedder-") as folder:
        kept = open_token_states(Path(folder), token_ids, read, task.features.hidden_size) if pool.device == "cpu" else None
        tapped = tap_training_set(task, pool, token_ids, kept)
        run = PoolingTraining(task, TrainingSet(token_ids, tapped.full_NW, num_held_out), pool, kept)
        yield f"{len(run.full_NW) - run.num_held_out} chunks, {time.perf_counter() - started:.0f} s"
        states_NTX, places = torch.from_numpy(tapped.states_NF).view(len(token_ids), -1, task.features.block), run.find_places(layers)
        before = run.fit_maps(states_NTX, places, leaves_out=True)
        if not task.keeps:
            del tapped, states_NTX
        for number in range(1, task.settings.epochs + 1):
            yield f"epoch {number}, loss {run.train(before):.4f}, {time.perf_counter() - started:.0f} s"
        if not task.keeps:
            states_NTX, places = torch.empty(len(token_ids), len(read), task.features.block), run.find_places(read)
        run.read_states(states_NTX, places)
        first, trained = run.measure(before), run.measure(run.fit_maps(states_NTX, places, leaves_out=False))
    yield f"held out: cosine {first:.4f} with the starting queries, {trained:.4f} trained, {time.perf_counter() - started:.0f} s"
    if trained <= first:
        yield task.tapping
    else:
        yield replace(task.tapping, weighing=run.pooling, known=Known.of(token_ids, tapped) if task.keeps else None)


def draw_training_set(task: PoolingTask) -> tuple[pa.ListArray, int]:
    """Chunk the documents, draw up to the wanted number of chunks of each kind, and fill up those to train on with synthetic ones.

    Return the token ids of all chunks, those held out first, and how many these are.
    """
    tapping, most = task.tapping, choose_chunks(task.features, task.settings)
    drawn = [task.held_out.slice(0, most), *task.units[: math.ceil(most / len(task.units[0]))]]
    held_out, *units = [chunk(each, tapping.spec, tapping.tokenizer_json) for each in drawn]
    held_out, others = (_draw(each, most, tapping.seed) for each in (held_out, pa.concat_arrays(units)))
    mixed = [mix_unit(unit, number, tapping.synthetic, tapping.seed) for number, unit in enumerate(units, task.first)]
    wanted = min(1.0, (most - len(others)) / max(1, sum(map(len, mixed))))
    return pa.concat_arrays([held_out, others, *(each.slice(0, int(wanted * len(each))) for each in mixed)]), len(held_out)


def _draw(token_ids: pa.ListArray, most: int, seed: int) -> pa.ListArray:
    return token_ids.take(pa.array(np.random.default_rng(seed).permutation(len(token_ids))[:most]))


def tap_training_set(task: PoolingTask, pool: Pool, token_ids: pa.ListArray, kept: TokenStates | None) -> ExitStates:
    """Run the full model; return its vectors and the states as the starting queries pool them. States of all tokens are kept, if wanted."""
    tapping = task.tapping
    encoder = Encoder.load(task.spec, pool.device, pool.dtype, layout=pool.layout, neurons=tapping.neurons)
    token_budget, keep, depths = choose_token_budget(encoder, pool), kept.keep if kept else None, tapping.depths if task.keeps else ()
    tapped = encoder.tap_exits(token_ids, token_budget, _tapped_layers(task), depths, tapping.weighing, keep)
    if tapping.neurons is None:
        return tapped
    del encoder
    whole = Encoder.load(task.spec, pool.device, pool.dtype, layout=pool.layout)
    return replace(tapped, full_NW=whole.encode(token_ids, token_budget).vectors_ND)


def _tapped_layers(task: PoolingTask) -> tuple[int, ...]:
    return task.tapping.layers if task.keeps else task.features.tapped


class FrozenLayers:
    """The layers up to the last one that a map reads."""

    def __init__(self, task: PoolingTask, layout: BatchLayout, pool: Pool) -> None:
        recipe, layers = find_recipe(task.spec), task.features.tapped
        dtype = resolve_dtype(pool.dtype, pool.device, recipe.family)
        spec = task.spec.model_copy(update={"depth": max(layers)})
        self.model: Any = load_layers(recipe, spec, dtype, task.tapping.neurons).to(pool.device)  # type: ignore[arg-type]
        self.model.set_attn_implementation(layout.attention)
        self.family, self.layers = find_family(recipe.family), layers

    def read(self, batch: Batch) -> dict[int, Tensor]:
        """Return the states of a batch by layer."""
        final_norm = self.model.get_submodule(self.family.final_norm) if self.family.final_norm else nn.Identity()
        layers: Any = self.model.get_submodule(self.family.layers)
        with torch.no_grad(), tap_layers(layers, final_norm, lambda _batch: lambda _layer, hidden: hidden, self.layers) as taps:
            taps.start(batch)
            self.model(**batch.inputs())
            return taps.pooled


class PoolingTraining:
    """One training, with Adam, of the queries and of a head for each depth that starts at zero. The layers are frozen."""

    def __init__(self, task: PoolingTask, chunks: TrainingSet, pool: Pool, kept: TokenStates | None = None) -> None:
        self.task, self.features, self.num_held_out = task, task.features, chunks.num_held_out
        self.full_NW = torch.from_numpy(unit(chunks.full_NW)).to(pool.device)
        self.layout = make_layout("padded", load_config(find_recipe(task.spec)), torch.device(pool.device))
        self.states = kept or FrozenLayers(task, self.layout, pool)
        self.pool = ExitPooler(task.spec.pooling, task.tapping.weighing).to(pool.device)
        block = self.features.num_queries * self.features.hidden_size
        self.standardize = nn.BatchNorm1d(len(self.features.tapped) * block, affine=False).to(pool.device)
        sizes = {str(depth): len(layers) * block for depth, layers in self.features.layers.items()}
        self.heads = nn.ModuleDict({depth: nn.Linear(size, task.spec.dim) for depth, size in sizes.items()}).to(pool.device)
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        rate = task.settings.learning_rate
        queries_TQX = self.pool.queries_TQX.requires_grad_(True)
        groups = [{"params": [queries_TQX], "lr": rate}, {"params": list(self.heads.parameters()), "lr": rate * HEAD_RATE}]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        num_steps = task.settings.epochs * math.ceil((len(self.full_NW) - self.num_held_out) / task.settings.batch_chunks)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, math.ceil(WARM_UP * num_steps), num_steps)
        self.draw = np.random.default_rng(task.tapping.seed)
        self.values, self.offsets = chunks.token_ids.values.to_numpy(), chunks.token_ids.offsets.to_numpy()
        self.lengths_N = np.diff(self.offsets)

    @property
    def pooling(self) -> AttentionPooling:
        """The current queries."""
        return AttentionPooling(self.task.tapping.weighing.token_weights_V, self.pool.queries_TQX.detach().cpu().numpy().copy())

    def train(self, mapped: Mapping[int, Tensor]) -> float:
        """Train one epoch on the corrections to the mapped vectors of each depth; return the mean loss."""
        losses = []
        for rows in self._plan_batches():
            corrections = self._correct(self._make_batch(rows))
            near = [cosines(mapped[depth][rows] + each, self.full_NW[rows]) for depth, each in corrections.items()]
            loss = 1 - torch.stack(near).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def _plan_batches(self) -> list[Rows]:
        """Group the rows to train on into batches of similar lengths, differently at each call, in random order; the longest row first."""
        rows_N = np.arange(self.num_held_out, len(self.lengths_N))
        order = rows_N[np.argsort(-self.lengths_N[rows_N] * self.draw.uniform(0.9, 1.1, len(rows_N)))]
        batches = np.array_split(order, math.ceil(len(order) / self.task.settings.batch_chunks))
        return [batches[number][np.argsort(-self.lengths_N[batches[number]])] for number in self.draw.permutation(len(batches))]

    def _make_batch(self, rows: Rows) -> Batch:
        """Lay out rows, which are ordered longest first."""
        return self.layout.collect(self.values, self.offsets[rows], self.lengths_N[rows])

    def _pool(self, batch: Batch) -> Tensor:
        """Return the (B, F) normalized states of the layers, side by side, as the current queries pool them."""
        pool, states = self.pool()(batch), self.states.read(batch)
        pooled = [pool(layer, states[layer]) for layer in self.features.tapped]
        return normalise_states(torch.cat(pooled, dim=1), self.features.hidden_size)

    def _correct(self, batch: Batch) -> dict[int, Tensor]:
        """Return, by depth, the (B, W) correction to the map of the starting queries."""
        num_rows, num_layers = len(batch.lengths_B), len(self.features.tapped)
        queried_BTQH = self._pool(batch).view(num_rows, num_layers, -1, self.features.hidden_size)[:, :, UNQUERIED:]
        standard_BTX = self.standardize(queried_BTQH.flatten(1)).view(num_rows, num_layers, -1)
        return {depth: self.heads[str(depth)](standard_BTX[:, self.features.blocks(depth)].flatten(1)) for depth in self.features.layers}

    def find_places(self, layers: Sequence[int]) -> list[int]:
        """Return the positions of the layers that are read among those given."""
        return [layers.index(layer) for layer in self.features.tapped]

    def fit_maps(self, states_NTX: Tensor, places: Sequence[int], leaves_out: bool) -> dict[int, Tensor]:
        """Fit a ridge map for each depth to pooled states; return its predictions for the chunks held out, or, each left out, for all."""
        held_out, before = self.num_held_out, list[int]()
        inner_NN = torch.zeros(len(states_NTX), len(states_NTX) - held_out, device=self.full_NW.device)
        mapped = {}
        for depth in self.features.layers:
            blocks = self.features.blocks(depth)
            if blocks[: len(before)] != before:
                before = []
                inner_NN.zero_()
            for number in blocks[len(before) :]:
                inner_NN += multiply_rows(states_NTX[:, places[number]].to(self.full_NW.device), held_out)
            mapped[depth], before = map_rows(inner_NN, self.full_NW, held_out, leaves_out), blocks
        return mapped

    def read_states(self, states_NTX: Tensor, places: Sequence[int]) -> None:
        """Fill in the states of all chunks at the layers that are read, pooled by the current queries."""
        order = np.argsort(-self.lengths_N, kind="stable")
        with torch.no_grad():
            for rows in np.array_split(order, math.ceil(len(order) / self.task.settings.batch_chunks)):
                pooled_BTX = self._pool(self._make_batch(rows)).view(len(rows), len(places), -1)
                states_NTX[torch.from_numpy(rows)[:, None], torch.tensor(places)] = pooled_BTX.cpu()

    def measure(self, mapped: Mapping[int, Tensor]) -> float:
        """Return the mean cosine to the full model's vectors over depths and chunks held out."""
        near = [cosines(each[: self.num_held_out], self.full_NW[: self.num_held_out]).mean() for each in mapped.values()]
        return float(torch.stack(near).mean())


def cosines(vectors_BW: Tensor, unit_BW: Tensor) -> Tensor:
    """Return the cosine of each row with the unit vector beside it."""
    return (functional.normalize(vectors_BW, dim=-1) * unit_BW).sum(dim=1)
