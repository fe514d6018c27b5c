"""The kept layers and the map of a calibrated exit → the same, trained to give the full model's vectors.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015: the teacher is the full model, whose vectors of the
sample were computed once. B = chunks of a batch, Q = queries, F = features, W = the full model's width, N = chunks of the sample.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from embedder.model.batches import Batch, BatchLayout, make_layout
from embedder.model.calibration import ExitMap
from embedder.model.exits import ExitPooler, normalise_states
from embedder.model.families import find_family
from embedder.model.files import locate_model, read_recipe
from embedder.model.loading import load_transformer, resolve_dtype
from embedder.model.runtime import set_threads
from embedder.model.taps import tap_layers
from embedder.spec import EmbeddingSpec
from embedder.study.config import DistillSettings
from embedder.study.exits import Fidelity, Floats, Spread, measure_fidelity, unit

TEMPERATURE = 0.05
"""Of similarities, when they are compared as shares: it weighs neighbours over what is far."""
NUM_QUERIES = 512
"""Full-model vectors that a batch is ranked for."""
WARM_UP = 0.06
"""Share of the steps over which the learning rate rises."""
MAP_RATE = 0.003
"""Of the learning rate, the map's share: all of its thousands of features move each component of a vector at once."""
MOST_NORM = 1.0
"""Of a step's gradient."""


@dataclass(frozen=True, slots=True)
class Teaching:
    """What an exit is trained on, and how."""

    spec: EmbeddingSpec
    """Of the full model."""
    depth: int
    exit_map: ExitMap
    token_weights_V: Floats  # noqa: N815
    spread: Spread
    """Of the map's features over the sample."""
    token_ids: pa.ListArray
    full_NW: Floats  # noqa: N815
    num_held_out: int
    """Of the chunks, those that come first: nothing is trained on them."""
    settings: DistillSettings
    seed: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training has come after an epoch."""

    number: int
    loss: float
    fidelity: Fidelity
    """On the chunks held out."""
    seconds: float

    def line(self) -> str:
        """Say it in a line of the log."""
        held_out = f"held out: cosine {self.fidelity.cosine:.4f}, overlap {self.fidelity.overlap:.3f}"
        return (
            f"epoch {self.number}, loss {self.loss:.4f}, {held_out}, {self.seconds:.0f} s" if self.number else f"the map alone, {held_out}"
        )


@dataclass(frozen=True, slots=True)
class Taught:
    """The exit of the best epoch, its layers' weights with its map, and the vectors it gives."""

    exit_map: ExitMap
    fidelity: Fidelity
    vectors_NW: Floats  # noqa: N815
    """Of the chunks that are not held out."""


class Student(nn.Module):
    """The kept layers, the map, and a correction of it over standardised features that starts at nothing."""

    def __init__(self, teaching: Teaching, model: PreTrainedModel, device: torch.device) -> None:
        super().__init__()
        family = find_family(model.config.model_type)
        self.layout: BatchLayout = make_layout("padded", model.config, device)
        model.set_attn_implementation(self.layout.attention)
        self.model, self.family = model, family
        # not the embeddings: they are most of the weights, and few texts of a sample hold any one of them
        model.get_submodule(family.layers).requires_grad_(True)
        self.pool = ExitPooler(teaching.spec.pooling, teaching.token_weights_V)
        self.layers = teaching.exit_map.layers
        self.mean_F: Tensor
        self.deviation_F: Tensor
        self.weight_FW: Tensor
        self.bias_W: Tensor
        self.register_buffer("mean_F", torch.from_numpy(teaching.spread.mean_F).float())
        self.register_buffer("deviation_F", torch.from_numpy(teaching.spread.deviation_F).float())
        self.register_buffer("weight_FW", torch.from_numpy(teaching.exit_map.weight_FW.copy()))
        self.register_buffer("bias_W", torch.from_numpy(teaching.exit_map.bias_W.copy()))
        num_features, width = teaching.exit_map.weight_FW.shape
        self.correction = nn.Linear(num_features, width)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)
        self.to(device)

    def forward(self, batch: Batch) -> Tensor:
        """Give (B, W) vectors of length 1."""
        path = self.family.final_norm
        final_norm = self.model.get_submodule(path) if path else nn.Identity()
        layers: Any = self.model.get_submodule(self.family.layers)
        with tap_layers(layers, final_norm, self._pool, self.layers) as taps:
            taps.start(batch)
            self.model(**batch.inputs())
            states_BF = taps.collect(self.layers)
        with torch.autocast(states_BF.device.type, enabled=False):
            features_BF = normalise_states(states_BF, int(self.model.config.hidden_size))
            mapped_BW = features_BF @ self.weight_FW + self.bias_W
            return functional.normalize(mapped_BW + self.correction((features_BF - self.mean_F) / self.deviation_F), dim=-1)

    def _pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # which would sum up in bfloat16
            pooled_BF: Tensor = self.pool(hidden, batch)
        return pooled_BF

    def exit_map(self) -> ExitMap:
        """Fold the correction into the map."""
        step_FW = self.correction.weight.T / self.deviation_F.unsqueeze(1)
        bias_W = self.bias_W + self.correction.bias - self.mean_F @ step_FW
        trained = {name: to_numpy(weights) for name, weights in self.model.named_parameters() if weights.requires_grad}
        return ExitMap(self.layers, to_numpy(self.weight_FW + step_FW), to_numpy(bias_W), trained)


def distill_exit(teaching: Teaching, device: str, dtype: str, threads: int) -> Iterator[Progress | Taught]:
    """Train; gives every epoch as it ends, number 0 being the map alone, and last what was best."""
    set_threads(threads)
    torch.manual_seed(teaching.seed)
    recipe = read_recipe(locate_model(teaching.spec.model, teaching.spec.revision)[0])
    model = load_transformer(recipe, teaching.depth, teaching.spec.final_norm, torch.float32)
    student = Student(teaching, model, torch.device(device))
    autocast = torch.autocast(device, torch.bfloat16, enabled=resolve_dtype(dtype, device, recipe.family) == torch.bfloat16)
    run = Run(teaching, student, autocast)
    best: tuple[Fidelity, dict[str, Tensor]] | None = None
    started = time.perf_counter()
    for number in range(teaching.settings.epochs + 1):
        loss = run.train() if number else math.nan
        fidelity = measure_fidelity(run.encode(0, teaching.num_held_out), teaching.full_NW[: teaching.num_held_out])
        yield Progress(number, loss, fidelity, time.perf_counter() - started)
        if best is None or fidelity.cosine > best[0].cosine:
            best = fidelity, {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
    assert best is not None
    student.load_state_dict(best[1])
    yield Taught(student.exit_map(), best[0], run.encode(teaching.num_held_out, len(teaching.full_NW)))


class Run:
    """The training of one student: AdamW, the learning rate rising over the first steps and then falling to nothing along a cosine."""

    def __init__(self, teaching: Teaching, student: Student, autocast: torch.autocast) -> None:
        self.teaching, self.student, self.autocast = teaching, student, autocast
        self.values, self.offsets = teaching.token_ids.values.to_numpy(), teaching.token_ids.offsets.to_numpy()
        self.lengths = np.diff(self.offsets)
        self.full_NW = torch.from_numpy(unit(teaching.full_NW)).to(student.bias_W.device)
        self.draw = np.random.default_rng(teaching.seed)
        rate = teaching.settings.learning_rate
        groups = [
            {"params": [each for each in student.model.parameters() if each.requires_grad], "lr": rate},
            {"params": list(student.correction.parameters()), "lr": rate * MAP_RATE},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        num_steps = teaching.settings.epochs * math.ceil((len(self.lengths) - teaching.num_held_out) / teaching.settings.batch_chunks)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate_at(step / max(1, num_steps)))

    def train(self) -> float:
        """Go once through the chunks that are not held out; gives the mean loss."""
        losses = []
        for rows in self.plan():
            loss = self.loss(rows)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.student.parameters(), MOST_NORM)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def plan(self) -> list[npt.NDArray[np.int64]]:
        """Cut the chunks into batches of like lengths, other ones in each epoch, in random order."""
        rows = np.arange(self.teaching.num_held_out, len(self.lengths))
        order = rows[np.argsort(-self.lengths[rows] * self.draw.uniform(0.9, 1.1, len(rows)))]
        batches = np.array_split(order, math.ceil(len(order) / self.teaching.settings.batch_chunks))
        return [batches[number][np.argsort(-self.lengths[batches[number]])] for number in self.draw.permutation(len(batches))]

    def loss(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Sum the distance to the full model's vectors and that of how batch is ranked for full-model queries."""
        vectors_BW, full_BW = self.forward(rows), self.full_NW[rows]
        queries = self.draw.integers(self.teaching.num_held_out, len(self.full_NW), NUM_QUERIES)
        queries_QW = torch.cat([full_BW, self.full_NW[queries]])
        wanted_QB = (queries_QW @ full_BW.T / TEMPERATURE).log_softmax(dim=1)
        found_QB = (queries_QW @ vectors_BW.T / TEMPERATURE).log_softmax(dim=1)
        ranked = functional.kl_div(found_QB, wanted_QB, reduction="batchmean", log_target=True)
        return (1 - (vectors_BW * full_BW).sum(dim=1)).mean() + ranked

    def forward(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Run rows, the longest first."""
        batch = self.student.layout.collect(self.values, self.offsets[rows], self.lengths[rows])
        with self.autocast:
            vectors_BW: Tensor = self.student(batch)
        return vectors_BW

    def encode(self, start: int, stop: int) -> Floats:
        """Give the student's vectors of some chunks, in order."""
        vectors_NW = np.empty((stop - start, self.full_NW.shape[1]), np.float32)
        order = start + np.argsort(-self.lengths[start:stop], kind="stable")
        with torch.inference_mode():
            for first in range(0, len(order), self.teaching.settings.batch_chunks):
                rows = order[first : first + self.teaching.settings.batch_chunks]
                vectors_NW[rows - start] = self.forward(rows).float().cpu().numpy()
        return vectors_NW


def to_numpy(tensor: Tensor) -> Floats:
    """Copy to the host."""
    array: Floats = tensor.detach().cpu().numpy().copy()
    return array


def rate_at(progress: float) -> float:
    """Give the share of the learning rate at a share of all steps."""
    return progress / WARM_UP if progress < WARM_UP else 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
