"""The kept layers and the map of a calibrated exit → the same, trained to reproduce the full model's vectors.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015: the teacher is the full model, whose vectors of the
sample are computed once. B = chunks of a batch, F = features, W = the full model's width, N = chunks of the sample.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.calibrate.collect import Collected
from embedder.calibrate.config import CalibrateSettings
from embedder.calibrate.fit import Fidelity, measure_fidelity
from embedder.calibrate.ridge import AffineMap, Sums, unit
from embedder.calibrate.training import Rows, TappedModel, Trainer, TrainingSet, run_training
from embedder.core.quantization import Floats
from embedder.core.rotation import Doubles
from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.batches import Batch
from embedder.model.calibration import ExitMap
from embedder.model.runtime import set_threads
from embedder.pipeline.pool import Pool

MAP_RATE = 0.01
"""Learning rate of the map, as a share of the layers': thousands of features move each component of a vector at once."""
START_STRENGTH = 1.0
"""Strength of the ridge map that training starts from: a map with smaller weights amplifies errors of single features less."""
DROPOUT = 0.1
"""Share of the map's features that are set to their mean in a step, so that the map relies on no single feature."""
UNIT_CHUNKS = 1024
"""Chunks added to the sums at once."""
MOST_NORM = 1.0
"""Largest norm of a step's gradient."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """Chunks, maps and settings of the training of one exit."""

    spec: EmbeddingSpec
    """Of the full model."""
    pooling: AttentionPooling
    exit_map: ExitMap
    """The best map without training."""
    start: AffineMap
    """The map that training starts from."""
    mean_F: Doubles  # noqa: N815
    deviation_F: Doubles  # noqa: N815
    chunks: TrainingSet
    settings: CalibrateSettings


@dataclass(frozen=True, slots=True)
class Distilled:
    """The best state: the map with the weights of its layers, and its vectors."""

    exit_map: ExitMap
    fidelity: Fidelity
    vectors_NW: Floats  # noqa: N815
    """Of the chunks that are not held out."""


def distill_exits(
    collected: Collected, maps: Mapping[int, ExitMap], model: EmbeddingSpec, pooling: AttentionPooling, how: CalibrateSettings, pool: Pool
) -> Iterator[tuple[int, Distilled]]:
    """Train the layers below each exit, with its map; yield each depth with its result."""
    chunks = read_chunks(collected)
    for depth, exit_map in maps.items():
        blocks = collected.features.blocks(depth)
        [(_, start)] = collected.sums.fit(blocks, [START_STRENGTH])
        task = Distillation(model, pooling, exit_map, start, *collected.sums.mean_and_deviation(blocks), chunks, how)
        yield depth, run_training(distill_exit, task, pool, f"depth {depth}")


def read_chunks(collected: Collected) -> TrainingSet:
    """Read the token ids and the full model's vectors of all chunks."""
    token_ids, vectors = [collected.held_out.token_ids], [collected.held_out.full_NW]
    for file in collected.files:
        with np.load(file) as arrays:
            token_ids.append(pa.ListArray.from_arrays(arrays["offsets"], arrays["token_ids"], type=token_ids[0].type))
            vectors.append(arrays["full"])
    return TrainingSet(pa.concat_arrays(token_ids), np.concatenate(vectors), len(vectors[0]))


def distill_exit(task: Distillation, pool: Pool) -> Iterator[str | Distilled]:
    """Yield the fidelity with the map alone, after each epoch, and with maps solved behind the trained layers; then the best state."""
    set_threads(pool.threads)
    torch.manual_seed(task.settings.seed)
    run, num_held_out, full_NW = Distiller(task, pool), task.chunks.num_held_out, task.chunks.full_NW
    best: tuple[Fidelity, dict[str, Tensor]] | None = None
    started = time.perf_counter()
    for name in run.steps():
        fidelity = measure_fidelity(run.trainer.run(run.student, 0, num_held_out).numpy(), full_NW[:num_held_out])
        seconds = time.perf_counter() - started
        yield f"{name}, held out: cosine {fidelity.cosine:.4f}, overlap {fidelity.overlap:.3f}, {seconds:.0f} s"
        if best is None or fidelity.cosine > best[0].cosine:
            best = fidelity, {name: tensor.detach().clone() for name, tensor in run.student.state_dict().items()}
    assert best is not None
    run.student.load_state_dict(best[1])
    yield Distilled(run.student.exit_map(), best[0], run.trainer.run(run.student, num_held_out, len(full_NW)).numpy())


class Student(nn.Module):
    """The kept layers, and the map over their standardized features."""

    def __init__(self, task: Distillation, pool: Pool) -> None:
        super().__init__()
        self.mean_F: Tensor
        self.deviation_F: Tensor
        self.tapped = TappedModel(task.spec, task.exit_map.layers, task.pooling, pool, is_trained=True)
        self.register_buffer("mean_F", torch.from_numpy(task.mean_F).float())
        self.register_buffer("deviation_F", torch.from_numpy(task.deviation_F).float())
        self.map = nn.Linear(*task.exit_map.weight_FW.shape)
        self.to(pool.device).eval()

    def set_map(self, fitted: AffineMap | ExitMap) -> None:
        """Replace the map."""
        weight_FW = torch.from_numpy(fitted.weight_FW).to(self.mean_F.device)
        bias_W = torch.from_numpy(fitted.bias_W).to(self.mean_F.device)
        with torch.no_grad():
            self.map.weight.copy_((weight_FW * self.deviation_F.unsqueeze(1)).T)
            self.map.bias.copy_(bias_W + self.mean_F @ weight_FW)

    def forward(self, batch: Batch) -> Tensor:
        """Return (B, W) vectors of length 1."""
        standard_BF = functional.dropout((self.tapped(batch) - self.mean_F) / self.deviation_F, DROPOUT, self.training)
        return functional.normalize(self.map(standard_BF), dim=-1)

    def exit_map(self) -> ExitMap:
        """Return the map of the features as they are, and the trained weights."""
        weight_FW = self.map.weight.T / self.deviation_F.unsqueeze(1)
        trained = {name: to_numpy(weights) for name, weights in self.tapped.model.named_parameters() if weights.requires_grad}
        return ExitMap(tuple(self.tapped.layers), to_numpy(weight_FW), to_numpy(self.map.bias - self.mean_F @ weight_FW), trained)


class Distiller:
    """One training of a student, with AdamW."""

    def __init__(self, task: Distillation, pool: Pool) -> None:
        self.task, self.student, settings = task, Student(task, pool), task.settings.distill
        self.full_NW = torch.from_numpy(unit(task.chunks.full_NW)).to(pool.device)
        layers = [each for each in self.student.tapped.parameters() if each.requires_grad]
        map_group = {"params": list(self.student.map.parameters()), "lr": settings.learning_rate * MAP_RATE, "weight_decay": 0.0}
        groups: list[dict[str, Any]] = [{"params": layers}, map_group]
        optimizer = torch.optim.AdamW(groups, settings.learning_rate, weight_decay=0.01)
        optimizer.register_step_pre_hook(self._clip_gradient)
        self.trainer = Trainer(self.student.tapped, task.chunks, settings, optimizer, task.settings.seed)

    def steps(self) -> Iterator[str]:
        """Yield the name of each state of the student, once it is in that state."""
        self.student.set_map(self.task.exit_map)
        yield "the map alone"
        self.student.set_map(self.task.start)
        for number in range(1, self.task.settings.distill.epochs + 1):
            self.student.training = True  # enables the map's dropout, not the layers'
            loss = self.trainer.train(self._compute_loss)
            self.student.eval()
            yield f"epoch {number}, loss {loss:.4f}"
        for strength, fitted in self.solve():
            self.student.set_map(fitted)
            yield f"solved anew at strength {strength:g}"

    def solve(self) -> Iterator[tuple[float, AffineMap]]:
        """Fit ridge maps behind the current layers, on the chunks that they were trained on."""
        chunks = self.task.chunks
        sums = Sums(1, *self.task.exit_map.weight_FW.shape)
        for start in range(chunks.num_held_out, len(chunks.full_NW), UNIT_CHUNKS):
            stop = min(start + UNIT_CHUNKS, len(chunks.full_NW))
            sums.add(self.trainer.run(self.student.tapped, start, stop).numpy(), chunks.full_NW[start:stop])
        yield from sums.fit([0], self.task.settings.strengths)

    def _compute_loss(self, rows: Rows) -> Tensor:
        vectors_BW: Tensor = self.student(self.trainer.make_batch(rows))
        return 1 - (vectors_BW * self.full_NW[rows]).sum(dim=1).mean()

    def _clip_gradient(self, *_: object) -> None:
        nn.utils.clip_grad_norm_(self.student.parameters(), MOST_NORM)


def to_numpy(tensor: Tensor) -> Floats:
    """Copy a tensor to the host."""
    array: Floats = tensor.detach().cpu().numpy().copy()
    return array
