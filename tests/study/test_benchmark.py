"""A benchmark that can be believed: contenders in turn, ratios within a round, layers timed from first to last."""

import time

import torch

from embedder.study.benchmark import timed_layers
from embedder.study.timing import compare


def test_ratios_are_to_the_first_contender_of_the_same_round() -> None:
    order: list[str] = []

    def contender(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    timings = compare({"slow": lambda: contender("slow", 0.04), "fast": lambda: contender("fast", 0.01)}, num_tokens=100, rounds=3)
    assert order == ["slow", "fast"] * 4, "one round of warm-up, then in turn"
    assert [timing.name for timing in timings] == ["slow", "fast"]
    assert timings[0].ratio == 1
    assert timings[1].ratio > 1.5
    assert 0 < timings[0].tokens_per_second <= 100 / 0.04


def test_layers_are_timed_once_a_forward_pass() -> None:
    layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(3)])
    with timed_layers(layers) as spent:
        for _ in range(2):
            states = torch.zeros(1, 4)
            for layer in layers:
                states = layer(states)
    assert len(spent) == 2
    assert all(seconds > 0 for seconds in spent)
    assert not layers[0]._forward_pre_hooks
