"""A check of a GPU goes on after an item that fails, ends its process or hangs, and fails where vectors differ."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import embedder.model.varlen_attention as attention
from embedder.benchmark.check_record import Bench, Record, run_steps
from embedder.benchmark.gpu_check import print_summary, supervise
from embedder.benchmark.gpu_parity import compare_layouts

WORKER = """
import os, sys, time
from pathlib import Path
from embedder.benchmark.check_record import Bench, Record, run_steps

def ended(bench):
    yield "before", lambda: {"value": 1.5}
    yield "ends", lambda: os._exit(9)
    yield "hangs", lambda: time.sleep(60)
    yield "after", lambda: {"ok": True}

run_steps({"ended": ended}, ["ended"], Bench("cpu"), Record.open(Path(sys.argv[1])), time.time() + 60)
"""


def test_an_item_that_raises_or_differs_fails_and_the_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def step(bench: Bench) -> Any:
        yield "raises", lambda: 1 / 0
        yield "differs", lambda: {"ok": False, "cosine": 0.5}
        yield "good", lambda: {"ok": True, "tokens/s": 123_456.0}

    record = Record(tmp_path / "check.json")
    run_steps({"step": step}, ["step"], Bench("cpu"), record, time.time() + 60)
    written = json.loads(record.path.read_text())
    assert written["failed"] == ["step: raises", "step: differs"]
    assert written["is_finished"]
    assert "ZeroDivisionError" in written["steps"]["step"]["raises"]["error"]
    print_summary(Record.open(record.path))
    told = capsys.readouterr().out
    assert "tokens/s 123,456" in told
    assert told.endswith("FAILED: step: raises; step: differs\n")


def test_what_the_time_does_not_allow_is_recorded_as_not_run(tmp_path: Path) -> None:
    def step(bench: Bench) -> Any:
        yield "late", lambda: {"ok": True}

    record = Record(tmp_path / "check.json")
    run_steps({"step": step}, ["step"], Bench("cpu"), record, time.time() - 1)
    assert record.steps["step"]["late"] == {"not_run": "no time left"}


@pytest.mark.real
def test_a_worker_that_ends_or_hangs_costs_one_item(tmp_path: Path) -> None:
    output = tmp_path / "check.json"
    record = supervise(output, [sys.executable, "-c", WORKER, str(output)], time.time() + 60, item_seconds=2)
    items = record.steps["ended"]
    assert items["before"]["result"] == {"value": 1.5}
    assert items["ends"]["error"] == "the worker ended with exit status 9"
    assert "ended after" in items["hangs"]["error"]
    assert items["after"]["result"] == {"ok": True}
    assert record.is_finished


@pytest.mark.real
def test_attention_that_sees_neighbours_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare_layouts(Bench("cpu"), "bert")["ok"]

    def see_neighbours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).contiguous()

    monkeypatch.setattr(attention, "attend_by_segment", see_neighbours)
    assert not compare_layouts(Bench("cpu"), "bert")["ok"]


@pytest.mark.real
@pytest.mark.slow
def test_a_dry_run_on_a_cpu_goes_through(tmp_path: Path) -> None:
    output = tmp_path / "check.json"
    steps = "env,ceilings,memory,float8,exits"
    command = [sys.executable, "-m", "jobs.gpu_check", "--device", "cpu", "--steps", steps, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = Record.open(output)
    assert set(record.steps) == set(steps.split(","))
    assert record.steps["float8"]["bert"]["result"]["ok"]
    assert done.stdout.rstrip().endswith("all ok")
