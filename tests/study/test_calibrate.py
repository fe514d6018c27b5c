"""The map of a depth is the one that comes nearest on chunks held out, also where that reads less."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedder.model.exits import NUM_POOLINGS
from embedder.study.calibrate import fit_exits
from embedder.study.exits import Features, Sums, unit

SIZE, LAYERS, NUM_FITTED = 8, (0, 1), 90
LEAD = np.concatenate([layer * NUM_POOLINGS * SIZE + np.arange((NUM_POOLINGS - 1) * SIZE, NUM_POOLINGS * SIZE) for layer in LAYERS])


@pytest.mark.parametrize("is_read", [False, True])
def test_the_last_pooling_is_read_only_where_it_says_something(is_read: bool) -> None:
    rng = np.random.default_rng(0)
    states_NF = rng.normal(size=(400, 2 * NUM_POOLINGS * SIZE)).astype(np.float32)
    weight_FW = rng.normal(size=(states_NF.shape[1], 12))
    if not is_read:
        weight_FW[LEAD] = 0
    full_NW = unit((states_NF @ weight_FW + 4 * rng.normal(size=(400, 12))).astype(np.float32))
    features = Features({1: LAYERS}, LAYERS, SIZE)
    sums = Sums(states_NF.shape[1], 12, features.pairs, features.block)
    sums.add(states_NF[:NUM_FITTED], full_NW[:NUM_FITTED])
    held_out = SimpleNamespace(states_NF=states_NF[NUM_FITTED:], full_NW=full_NW[NUM_FITTED:], native={1: full_NW[NUM_FITTED:]})
    collected: Any = SimpleNamespace(sums=sums, held_out=held_out)
    maps, [report] = fit_exits(collected, features, (0.01, 0.1, 1.0))
    assert maps[1].weight_FW.shape == weight_FW.shape
    assert bool(maps[1].weight_FW[LEAD].any()) == is_read
    assert report.num_features == 2 * SIZE * (NUM_POOLINGS if is_read else NUM_POOLINGS - 1)
    vectors_NW = held_out.states_NF @ maps[1].weight_FW + maps[1].bias_W
    assert (unit(vectors_NW) * held_out.full_NW).sum(axis=1).mean() == pytest.approx(report.calibrated.cosine, abs=1e-5)
