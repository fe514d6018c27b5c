"""The kept layers and the map of a calibrated exit → the same, trained to give the full model's vectors.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015: the teacher is the full model, whose vectors of the
sample were computed once. B = chunks of a batch, F = features, W = the full model's width, N = chunks of the sample, X = columns asked for.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from embedder.calibrate.config import DistillSettings
from embedder.calibrate.ridge import Fidelity, Floats, Line, Spread, Sums, measure_fidelity, unit
from embedder.calibrate.schedule import plan_steps, rate_at
from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.batches import Batch, BatchLayout, make_layout
from embedder.model.calibration import ExitMap
from embedder.model.exits import ExitPooler, normalise_states
from embedder.model.files.families import find_family
from embedder.model.files.recipe import locate_model, read_recipe
from embedder.model.loading import load_transformer, resolve_dtype
from embedder.model.runtime import set_threads
from embedder.model.taps import PoolLayer, tap_layers

MAP_RATE = 0.01
"""Of the learning rate, the map's share: all of its thousands of features move each component of a vector at once."""
START_STRENGTH = 1.0
"""Of the ridge map that training starts from: one that leans on few features less passes on smaller errors of each."""
DROPOUT = 0.1
"""Share of the map's features that are set to their mean in a step, so that none is relied on alone."""
UNIT_CHUNKS = 1024
"""That are summed up at once."""
MOST_NORM = 1.0
"""Of a step's gradient."""


@dataclass(frozen=True, slots=True)
class Teaching:
    """What an exit is trained on, and how."""

    spec: EmbeddingSpec
    """Of the full model."""
    depth: int
    exit_map: ExitMap
    """The best without training."""
    start: Line
    """The map that training starts from."""
    strengths: Sequence[float]
    """Of the ridge maps tried behind the layers that were trained."""
    weighing: AttentionPooling
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
    """How far the training has come."""

    name: str
    fidelity: Fidelity
    """On the chunks held out."""
    seconds: float

    def line(self) -> str:
        """Say it in a line of the log."""
        return f"{self.name}, held out: cosine {self.fidelity.cosine:.4f}, overlap {self.fidelity.overlap:.3f}, {self.seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class Taught:
    """The best exit that was seen, its layers' weights with its map, and the vectors it gives."""

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
        self.pool = ExitPooler(teaching.spec.pooling, teaching.weighing)
        self.layers = teaching.exit_map.layers
        self.mean_F: Tensor
        self.deviation_F: Tensor
        self.weight_FW: Tensor
        self.bias_W: Tensor
        num_features, width = teaching.exit_map.weight_FW.shape
        self.register_buffer("mean_F", torch.from_numpy(teaching.spread.mean_F).float())
        self.register_buffer("deviation_F", torch.from_numpy(teaching.spread.deviation_F).float())
        self.register_buffer("weight_FW", torch.empty(num_features, width))
        self.register_buffer("bias_W", torch.empty(width))
        self.correction = nn.Linear(num_features, width)
        self.set_map(teaching.exit_map.weight_FW, teaching.exit_map.bias_W)
        self.to(device).eval()

    def set_map(self, weight_FW: Floats, bias_W: Floats) -> None:
        """Take another map, uncorrected."""
        self.weight_FW.copy_(torch.from_numpy(weight_FW))
        self.bias_W.copy_(torch.from_numpy(bias_W))
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, batch: Batch) -> Tensor:
        """Give (B, W) vectors of length 1."""
        features_BF = self.features(batch)
        with torch.autocast(features_BF.device.type, enabled=False):
            standard_BF = (features_BF - self.mean_F) / self.deviation_F
            if self.training:
                standard_BF = functional.dropout(standard_BF, DROPOUT)
                features_BF = standard_BF * self.deviation_F + self.mean_F
            mapped_BW = features_BF @ self.weight_FW + self.bias_W
            return functional.normalize(mapped_BW + self.correction(standard_BF), dim=-1)

    def features(self, batch: Batch) -> Tensor:
        """Give (B, F) of what the map reads."""
        path = self.family.final_norm
        final_norm = self.model.get_submodule(path) if path else nn.Identity()
        layers: Any = self.model.get_submodule(self.family.layers)
        with tap_layers(layers, final_norm, self._read, self.layers) as taps:
            taps.start(batch)
            self.model(**batch.inputs())
            states_BF = taps.collect(self.layers)
        return normalise_states(states_BF, int(self.model.config.hidden_size))

    def _read(self, batch: Batch) -> PoolLayer:
        off = torch.autocast(batch.lengths_B.device.type, enabled=False)  # which would sum up in bfloat16
        with off:
            pool: PoolLayer = self.pool()(batch)
        undisturbed: PoolLayer = off(pool)
        return undisturbed

    def exit_map(self) -> ExitMap:
        """Fold the correction into the map."""
        step_FW = self.correction.weight.T / self.deviation_F.unsqueeze(1)
        bias_W = self.bias_W + self.correction.bias - self.mean_F @ step_FW
        trained = {name: to_numpy(weights) for name, weights in self.model.named_parameters() if weights.requires_grad}
        return ExitMap(self.layers, to_numpy(self.weight_FW + step_FW), to_numpy(bias_W), trained)


def distill_exit(teaching: Teaching, device: str, dtype: str, threads: int) -> Iterator[Progress | Taught]:
    """Train; says how good the map alone is, then each epoch, then maps solved anew behind the trained layers; last, what was best."""
    set_threads(threads)
    torch.manual_seed(teaching.seed)
    recipe = read_recipe(locate_model(teaching.spec.model, teaching.spec.revision)[0])
    model = load_transformer(recipe, teaching.depth, teaching.spec.final_norm, torch.float32)
    student = Student(teaching, model, torch.device(device))
    autocast = torch.autocast(device, torch.bfloat16, enabled=resolve_dtype(dtype, device, recipe.family) == torch.bfloat16)
    run = Run(teaching, student, autocast)
    best: tuple[Fidelity, dict[str, Tensor]] | None = None
    started = time.perf_counter()
    for name in run.steps():
        fidelity = measure_fidelity(run.encode(0, teaching.num_held_out), teaching.full_NW[: teaching.num_held_out])
        yield Progress(name, fidelity, time.perf_counter() - started)
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

    def steps(self) -> Iterator[str]:
        """Change the student step by step; gives what each was called."""
        yield "the map alone"
        self.student.set_map(self.teaching.start.weight_FW, self.teaching.start.bias_W)
        for number in range(1, self.teaching.settings.epochs + 1):
            yield f"epoch {number}, loss {self.train():.4f}"
        for strength, line in self.solve():
            self.student.set_map(line.weight_FW, line.bias_W)
            yield f"solved anew at strength {strength:g}"

    def solve(self) -> Iterator[tuple[float, Line]]:
        """Fit ridge maps behind the layers as they are now, on what they were trained on."""
        num_features, held_out = len(self.student.mean_F), self.teaching.num_held_out
        sums = Sums(num_features, self.full_NW.shape[1])
        for start in range(held_out, len(self.teaching.full_NW), UNIT_CHUNKS):
            stop = min(start + UNIT_CHUNKS, len(self.teaching.full_NW))
            sums.add(self.run(self.student.features, start, stop, num_features), self.teaching.full_NW[start:stop])
        yield from sums.fit(np.arange(num_features), self.teaching.strengths)

    def train(self) -> float:
        """Go once through the chunks that are not held out; gives the mean loss."""
        self.student.training = True  # the map's dropout, and not the layers': a teacher has none
        losses = []
        rows_N = np.arange(self.teaching.num_held_out, len(self.lengths))
        for rows in plan_steps(rows_N, self.lengths, self.teaching.settings.batch_chunks, self.draw):
            loss = self.loss(rows)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.student.parameters(), MOST_NORM)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        self.student.eval()
        return float(torch.stack(losses).mean())

    def loss(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Give the mean distance to the full model's vectors, one less the cosine."""
        return (1 - (self.forward(self.student, rows) * self.full_NW[rows]).sum(dim=1)).mean()

    def forward(self, part: Callable[[Batch], Tensor], rows: npt.NDArray[np.int64]) -> Tensor:
        """Run rows, the longest first, through the student or a part of it."""
        batch = self.student.layout.collect(self.values, self.offsets[rows], self.lengths[rows])
        with self.autocast:
            return part(batch)

    def encode(self, start: int, stop: int) -> Floats:
        """Give the student's vectors of some chunks, in order."""
        return self.run(self.student, start, stop, self.full_NW.shape[1])

    def run(self, part: Callable[[Batch], Tensor], start: int, stop: int, width: int) -> Floats:
        """Run some chunks through the student or a part of it; gives (stop - start, width), in order."""
        rows_NX = np.empty((stop - start, width), np.float32)
        order = start + np.argsort(-self.lengths[start:stop], kind="stable")
        with torch.inference_mode():
            for first in range(0, len(order), self.teaching.settings.batch_chunks):
                rows = order[first : first + self.teaching.settings.batch_chunks]
                rows_NX[rows - start] = self.forward(part, rows).float().cpu().numpy()
        return rows_NX


def to_numpy(tensor: Tensor) -> Floats:
    """Copy to the host."""
    array: Floats = tensor.detach().cpu().numpy().copy()
    return array
