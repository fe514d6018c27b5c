"""Chunks of a sample → the queries of the learned means that exits read, trained to make the full model's vectors easy to map to.

The full model is frozen. While it runs over a batch, each layer's states are pooled by the queries as they are now; behind them, a
linear head a depth corrects what a ridge map of the starting queries gives. The heads are thrown away: ridge then solves anew.
N = chunks, B = those of a batch, T = layers, Q = queries, H = hidden size, F = features, W = the full model's width.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.calibrate.config import AttentionSettings
from embedder.calibrate.ridge import LEAST_DEVIATION, Features, Floats, unit
from embedder.calibrate.schedule import plan_steps, rate_at
from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import NUM_QUERIES, AttentionPooling
from embedder.model.batches import Batch, BatchLayout, make_layout
from embedder.model.encoder import Encoder
from embedder.model.exits import NUM_POOLINGS, ExitPooler, normalise_states
from embedder.model.files.families import find_family
from embedder.model.files.recipe import locate_model, read_recipe
from embedder.model.loading import load_transformer, resolve_dtype
from embedder.model.runtime import set_threads
from embedder.model.taps import tap_layers
from embedder.pipeline.actors import choose_token_budget
from embedder.pipeline.pool import Pool
from embedder.text.chunking import chunk_documents
from embedder.text.tokenizing import load_tokenizer

HEAD_RATE = 0.04
"""Of the learning rate, the heads' share: all of their thousands of features move each component of a vector at once."""
STRENGTH = 0.3
"""Of the ridge maps that heads correct, and of those that are compared on chunks held out."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What queries are learned from, and how."""

    spec: EmbeddingSpec
    """Of the full model."""
    tokenizer_json: str
    held_out: pa.Table
    """DOCUMENTS that nothing is trained on: they say whether what was learned is of use."""
    documents: pa.Table
    """DOCUMENTS to train on."""
    layers: Mapping[int, tuple[int, ...]]
    """By depth: the layers that its map reads."""
    weighing: AttentionPooling
    """What the training starts from."""
    settings: AttentionSettings
    seed: int

    @property
    def features(self) -> Features:
        """Where each depth's features are among those of all layers read."""
        read = tuple(sorted({layer for layers in self.layers.values() for layer in layers}))
        return Features(self.layers, read, self.weighing.hidden_size)


@dataclass(frozen=True, slots=True)
class Lessons:
    """Token ids of chunks, those held out first, what the first queries pool of them, and the full model's vectors."""

    token_ids: pa.ListArray
    states_NF: Floats  # noqa: N815
    full_NW: Floats  # noqa: N815
    num_held_out: int


def train_attention_pooling(learning: Learning, pool: Pool) -> Iterator[str | AttentionPooling]:
    """Train; says how far it is, and last gives the weighing that was learned, or the first one if that is nearer on chunks held out.

    Memory holds the pooled states of all chunks, and of a batch the token states of every layer read: of 12 layers of 768, all depths and
    5,400 chunks of 256 tokens, 0.8 GB and 0.3 GB, beside 0.8 GB for heads and their moments. Token states are computed anew in each epoch:
    those of all chunks would take 25 GB.
    """
    set_threads(pool.threads)
    torch.manual_seed(learning.seed)
    started = time.perf_counter()
    run = Run(learning, take_lessons(learning, pool), pool)
    yield f"{run.num_fitted} chunks, {time.perf_counter() - started:.0f} s"
    before = run.solve(torch.from_numpy(run.lessons.states_NF))
    for number in range(1, learning.settings.epochs + 1):
        yield f"epoch {number}, loss {run.train(before):.4f}, {time.perf_counter() - started:.0f} s"
    first, learned = (run.measure(predicted) for predicted in (before, run.solve(run.read_states())))
    yield f"held out: cosine {first:.4f} by the first queries, {learned:.4f} by those learned, {time.perf_counter() - started:.0f} s"
    yield run.student.weighing(learning.weighing) if learned > first else learning.weighing


def take_lessons(learning: Learning, pool: Pool) -> Lessons:
    """Chunk the documents, draw of either kind no more chunks than are wanted, and run the full model over them."""
    held_out, others = (draw_chunks(learning, documents) for documents in (learning.held_out, learning.documents))
    token_ids = pa.concat_arrays([held_out, others])
    encoder = Encoder.load(learning.spec, pool.device, pool.dtype, layout=pool.layout)
    tapped = encoder.tap_exits(token_ids, choose_token_budget(encoder, pool), learning.features.tapped, (), learning.weighing)
    return Lessons(token_ids, tapped.states_NF, tapped.full_NW, len(held_out))


def draw_chunks(learning: Learning, documents: pa.Table) -> pa.ListArray:
    """Give the token ids of some chunks; documents come in random order, and each has at least one."""
    most = learning.settings.chunks
    chunks = chunk_documents(documents.slice(0, most), load_tokenizer(learning.tokenizer_json), learning.spec)
    drawn = np.random.default_rng(learning.seed).permutation(chunks.num_rows)[:most]
    return chunks["token_ids"].combine_chunks().take(pa.array(drawn))


class Student(nn.Module):
    """The frozen layers up to the last one read, the pooling of their states, and for each depth a head that starts at nothing."""

    def __init__(self, learning: Learning, pool: Pool) -> None:
        super().__init__()
        recipe = read_recipe(locate_model(learning.spec.model, learning.spec.revision)[0])
        dtype = resolve_dtype(pool.dtype, pool.device, recipe.family)
        self.features = learning.features
        self.model = load_transformer(recipe, max(self.features.tapped), learning.spec.final_norm, dtype).requires_grad_(False)
        self.family = find_family(self.model.config.model_type)
        self.layout: BatchLayout = make_layout("padded", self.model.config, torch.device(pool.device))
        self.model.set_attn_implementation(self.layout.attention)
        self.pool = ExitPooler(learning.spec.pooling, learning.weighing)
        self.standardise = nn.BatchNorm1d(len(self.features.tapped) * NUM_QUERIES * self.features.hidden_size, affine=False)
        block = NUM_QUERIES * self.features.hidden_size
        self.heads = nn.ModuleDict(
            {str(depth): nn.Linear(len(layers) * block, learning.spec.dim) for depth, layers in self.features.layers.items()}
        )
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        self.to(torch.device(pool.device)).eval()

    def states(self, batch: Batch) -> Tensor:
        """Give (B, F) of all layers read, normalised."""
        path = self.family.final_norm
        final_norm = self.model.get_submodule(path) if path else nn.Identity()
        layers: Any = self.model.get_submodule(self.family.layers)
        with tap_layers(layers, final_norm, self.pool(), self.features.tapped) as taps:
            taps.start(batch)
            self.model(**batch.inputs())
            states_BF = taps.collect(self.features.tapped)
        return normalise_states(states_BF, self.features.hidden_size)

    def corrections(self, batch: Batch) -> dict[int, Tensor]:
        """Give by depth what its head adds to a map of the first queries: (B, W)."""
        states_BTPH = self.states(batch).view(len(batch.lengths_B), len(self.features.tapped), NUM_POOLINGS, -1)
        learned_BT = self.standardise(states_BTPH[:, :, -NUM_QUERIES:].flatten(1)).view(len(states_BTPH), len(self.features.tapped), -1)
        read = {depth: [self.features.tapped.index(layer) for layer in layers] for depth, layers in self.features.layers.items()}
        return {depth: self.heads[str(depth)](learned_BT[:, places].flatten(1)) for depth, places in read.items()}

    def weighing(self, first: AttentionPooling) -> AttentionPooling:
        """Give the queries as they are now."""
        return AttentionPooling(first.token_weights_V, self.pool.queries_TQX.detach().cpu().numpy().copy())


class Run:
    """The training of the queries: Adam, the learning rate rising over the first steps and then falling to nothing along a cosine."""

    def __init__(self, learning: Learning, lessons: Lessons, pool: Pool) -> None:
        self.learning, self.lessons, self.student = learning, lessons, Student(learning, pool)
        self.device = torch.device(pool.device)
        self.num_fitted = len(lessons.token_ids) - lessons.num_held_out
        self.values, self.offsets = lessons.token_ids.values.to_numpy(), lessons.token_ids.offsets.to_numpy()
        self.lengths = np.diff(self.offsets)
        self.full_NW = torch.from_numpy(unit(lessons.full_NW)).to(self.device)
        self.draw = np.random.default_rng(learning.seed)
        rate = learning.settings.learning_rate
        queries = self.student.pool.queries_TQX.requires_grad_(True)
        groups = [{"params": [queries], "lr": rate}, {"params": list(self.student.heads.parameters()), "lr": rate * HEAD_RATE}]
        self.optimizer = torch.optim.Adam(groups)
        num_steps = learning.settings.epochs * math.ceil(self.num_fitted / learning.settings.batch_chunks)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate_at(step / max(1, num_steps)))

    def train(self, mapped: Mapping[int, Tensor]) -> float:
        """Go once through the chunks that are not held out; gives the mean loss."""
        self.student.standardise.train()
        losses = []
        rows_N = np.arange(self.lessons.num_held_out, len(self.lengths))
        for rows in plan_steps(rows_N, self.lengths, self.learning.settings.batch_chunks, self.draw):
            corrections = self.student.corrections(self.collect(rows))
            near = [(normalize(mapped[depth][rows] + each) * self.full_NW[rows]).sum(dim=1) for depth, each in corrections.items()]
            loss = 1 - torch.stack(near).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        self.student.standardise.eval()
        return float(torch.stack(losses).mean())

    def collect(self, rows: npt.NDArray[np.int64]) -> Batch:
        """Lay out rows, the longest first."""
        return self.student.layout.collect(self.values, self.offsets[rows], self.lengths[rows])

    def solve(self, states_NF: Tensor) -> dict[int, Tensor]:
        """Fit a ridge map a depth to pooled states; gives what it makes of all chunks, held out ones too: (N, W)."""
        places = {depth: torch.from_numpy(self.student.features.places(depth)) for depth in self.learning.layers}
        held_out = self.lessons.num_held_out
        return {depth: map_rows(states_NF[:, each].to(self.device), self.full_NW, held_out) for depth, each in places.items()}

    def read_states(self) -> Tensor:
        """Give (N, F) of all chunks by the queries as they are now, on the host."""
        features = self.student.features
        states_NF = torch.empty(len(self.lengths), len(features.tapped) * NUM_POOLINGS * features.hidden_size)
        order, size = np.argsort(-self.lengths, kind="stable"), self.learning.settings.batch_chunks
        with torch.no_grad():
            for rows in np.array_split(order, math.ceil(len(order) / size)):
                states_NF[rows] = self.student.states(self.collect(rows)).cpu()
        return states_NF

    def measure(self, mapped: Mapping[int, Tensor]) -> float:
        """Give the mean cosine to the full model's vectors over depths and chunks held out."""
        held_out = self.lessons.num_held_out
        near = [(normalize(each[:held_out]) * self.full_NW[:held_out]).sum(dim=1).mean() for each in mapped.values()]
        return float(torch.stack(near).mean())


def map_rows(states_NF: Tensor, full_NW: Tensor, num_held_out: int) -> Tensor:
    """Fit a ridge map on the rows that are not held out; gives what it makes of all rows.

    Solved among rows, of which there are fewer than features. What stands for a row it was fitted on is what a map fitted on all others
    would make of it, by the residual that leaving it out leaves: α over the diagonal of the inverse.
    """
    fitted_NF, fitted_NW = states_NF[num_held_out:], full_NW[num_held_out:]
    deviation_F = fitted_NF.std(dim=0).clamp_min(LEAST_DEVIATION)
    mean_F, mean_W = fitted_NF.mean(dim=0), fitted_NW.mean(dim=0)
    standard_NF = (states_NF - mean_F) / (deviation_F * math.sqrt(len(fitted_NF)))
    inner_NN = standard_NF @ standard_NF[num_held_out:].T
    inverse_NN = torch.linalg.inv(inner_NN[num_held_out:] + STRENGTH * torch.eye(len(fitted_NF), device=states_NF.device))
    alpha_NW = inverse_NN @ (fitted_NW - mean_W)
    left_out_NW = fitted_NW - alpha_NW / inverse_NN.diagonal().unsqueeze(-1)
    return torch.cat([inner_NN[:num_held_out] @ alpha_NW + mean_W, left_out_NW])


def normalize(vectors_BW: Tensor) -> Tensor:
    """Give every vector length 1."""
    return functional.normalize(vectors_BW, dim=-1)
