"""A benchmark that can be believed: contenders in turn, ratios within a round, layers timed from first to last."""

import sys
import time
from pathlib import Path

import pytest
import torch

from embedder.benchmark import peer_server, peers
from embedder.benchmark.encoder_and_job import EncoderTimings, benchmark_encoder, lay_out, timed_layers
from embedder.benchmark.exit_cost import ExitTiming, benchmark_exits
from embedder.core.errors import ConfigError
from embedder.sweep.timing import Timing, compare


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


def test_the_best_peer_is_compared_within_rounds() -> None:
    timings = [
        Timing("sentence-transformers, default", 50.0, 1.0, (2.0, 2.0, 2.0)),
        Timing("openvino, a plain loop", 100.0, 2.0, (1.0, 3.0, 1.0)),
        Timing("sentence-transformers, onnx, int8 (dynamic)", 150.0, 3.0, (0.75, 1.0, 0.75)),
        Timing("embedder, openvino, float32", 200.0, 4.0, (0.5, 1.0, 0.5)),
        Timing("embedder, openvino, float32, depth 3", 400.0, 8.0, (0.25, 0.5, 0.25)),
    ]
    shown = lay_out(EncoderTimings(100, timings, {each.name: 1.0 for each in timings}))
    assert shown.splitlines()[-2:] == [
        "embedder, openvino, float32: 2.00 x the best peer (openvino, a plain loop)",
        "embedder, openvino, float32: 1.50 x the best int8 peer (sentence-transformers, onnx, int8 (dynamic))",
    ]


def test_every_encoder_shows_how_near_its_vectors_are_to_the_reference(minilm: str) -> None:
    found = benchmark_encoder(minilm, ["A fox jumps over a dog.", "Rain fell on the city all night."] * 2, 512, 1)
    exact = {name: cosine for name, cosine in found.cosines.items() if name.endswith("float32")}
    assert set(exact) >= {"sentence-transformers, float32", "embedder, torch, float32"}
    assert all(cosine == pytest.approx(1, abs=1e-4) for cosine in exact.values()), exact
    assert found.cosines["embedder, torch, float32, depth 3"] < 0.9


def test_peers_of_another_environment_run_when_they_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "server.py"
    server.write_text(
        "import json, sys, functools, pathlib\n"
        "assert str(pathlib.Path(__file__).parent) not in sys.path, 'a module beside it could shadow a package'\n"
        f"sys.path.insert(0, {str(Path(peer_server.__file__).parent)!r})\n"
        "from peer_server import serve\n"
        "texts = json.loads(pathlib.Path(sys.argv[2]).read_text())\n"
        "note = lambda: [[pathlib.Path(sys.argv[1], 'ran').write_text(texts[0])]]\n"
        "serve({'one': note, 'two': sys.exit}, pathlib.Path(sys.argv[2]).with_suffix('.npy'), functools.partial(print, flush=True))\n"
    )
    monkeypatch.setattr(peer_server, "__file__", str(server))
    with peers.open_peers(sys.executable, str(tmp_path), ["café"]) as found:
        assert list(found) == ["one", "two"]
        assert not (tmp_path / "ran").exists()
        assert found["one"]().tolist() == [[4]]
        assert (tmp_path / "ran").read_text() == "café"
        with pytest.raises(ConfigError, match="--peer-python: the peer process exited with 0"):
            found["two"]()


def test_a_python_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="--peer-python /none: No such file"), peers.open_peers("/none", "", []):
        pass


def test_every_shallow_depth_is_timed_with_taps_alone_and_with_the_map(minilm: str) -> None:
    timings = benchmark_exits(minilm, ["A fox jumps over a dog.", "Rain fell on the city all night."] * 4, 512, 1)
    assert [each.depth for each in timings] == [1, 2, 3, 4, 5]
    for each in timings:
        assert each.tokens_per_second > 0
        assert each.taps > -1 < each.price


def test_the_price_of_an_exit_is_told_apart_from_that_of_its_taps() -> None:
    assert ExitTiming(3, 23_365.2, 0.0144, 0.0461).line() == "   23,365 tokens/s  +1.4% time for taps, +4.6% with the map"
