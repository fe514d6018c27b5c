"""Devices that fail while an actor loads its model are refused in a line; one that fails later ends its worker."""

from typing import Any

import pyarrow as pa
import pytest
import torch

import embedder.model.encoder
import embedder.model.runtime
from embedder.core.errors import ModelError
from embedder.model.runtime import refusing_device_errors
from embedder.pipeline.actors import Actor
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import to_ipc
from embedder.pipeline.tap_actor import TapActor, Tapping

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
FAILED = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")


class LoadingActor(Actor):
    """Fails as a device does while it loads."""

    def setup(self, device: str, error: Exception) -> None:
        with refusing_device_errors(device):
            raise error

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


@pytest.mark.parametrize(
    ("error", "named"),
    [(OUT_OF_MEMORY, "out of memory while loading the model .*lower embedding.depth"), (FAILED, "the device failed .*ECC")],
)
def test_a_device_that_fails_while_a_model_loads_is_refused_at_the_first_row(
    error: Exception, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    actor = LoadingActor("cuda", error)
    with pytest.raises(ModelError, match=f"compute.device=cuda: {named}"):
        actor({})


@pytest.mark.parametrize("error", [RuntimeError("the NVIDIA driver is too old"), AssertionError("torch has no CUDA")])
def test_a_device_that_torch_cannot_use_is_refused_at_the_first_row(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "init", init)
    actor = LoadingActor("cuda:0", ValueError("never reached"))
    with pytest.raises(ModelError, match=f"compute.device=cuda:0: torch cannot use a GPU here \\({error}\\)"):
        actor({})


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="a fault of ours"):
        LoadingActor("cpu", RuntimeError("a fault of ours"))


@pytest.fixture
def tap_actor(monkeypatch: pytest.MonkeyPatch) -> TapActor:
    class FailingEncoder:
        @classmethod
        def load(cls, *_: Any, **__: Any) -> "FailingEncoder":
            return cls()

        def tap_exits(self, *_: Any) -> None:
            raise FAILED

    monkeypatch.setattr(embedder.model.encoder, "Encoder", FailingEncoder)
    tapping = Tapping(None, "", (1,), (1,), None)  # type: ignore[arg-type]
    return TapActor(tapping, Pool("cpu", "float32", 64, (1, 1), 0.0, 1.0, 1, 1.0))


def test_a_device_that_fails_while_states_are_tapped_ends_the_worker(tap_actor: TapActor, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(embedder.model.runtime.os, "_exit", leave)
    chunks = pa.table({"token_ids": pa.array([[1, 2]], pa.list_(pa.int32()))})
    with pytest.raises(SystemExit) as ended:
        tap_actor({"token_ids": to_ipc(chunks), "number": 0, "num_real": 1})
    assert ended.value.code == embedder.model.runtime.DEVICE_FAILED
