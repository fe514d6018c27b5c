"""Threads of an encoder's process, and the handling of a device that fails."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from embedder.core.errors import ModelError
from embedder.core.retry import one_line

DEVICE_FAILED = 70
"""Exit status of a worker whose device failed: EX_SOFTWARE of sysexits.h."""

_BFLOAT16_COMPUTE_CAPABILITY = (8, 0)

logger = logging.getLogger("embedder")


def set_threads(num_threads: int) -> None:
    """Set the threads of every later matrix product of the calling thread, of which Ray gives a worker one, whatever the machine has."""
    torch.set_num_threads(num_threads)


def multiplies_bfloat16(device: str) -> bool:
    """Return whether the hardware multiplies bfloat16; hardware that emulates it is slower than in float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= _BFLOAT16_COMPUTE_CAPABILITY
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def ending_with_its_device() -> Iterator[None]:
    """End the process if its device fails (an illegal access, a failed assertion, broken memory) while the block runs.

    CUDA gives such an error to every later call of the process too. Raised, it would end the whole run; a worker that is gone is
    replaced, and what it had in hand is tried again and taken apart, like what kills a worker in any other way.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        logger.critical("the device failed (%s); this worker ends, and another one takes over", one_line(error))
        os._exit(DEVICE_FAILED)


def has_gpu() -> bool:
    """Return whether torch finds a GPU."""
    return torch.cuda.is_available()


@contextmanager
def refusing_device_errors(device: str) -> Iterator[None]:
    """Raise ModelError for a device that cannot be used, is out of memory or fails while the block loads a model onto it.

    torch raises RuntimeError for a driver that is too old. Raised while Ray makes an actor, Ray would retry and bury the reason.
    """
    if torch.device(device).type == "cuda":
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
            raise ModelError(
                f"compute.device={device}: torch cannot use a GPU here ({one_line(error)}); "
                "check nvidia-smi and that the driver fits torch's CUDA"
            ) from error
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"compute.device={device}: out of memory while loading the model ({one_line(error)}); "
            "lower embedding.depth, give each actor more of a GPU (compute.num_gpus), or free the GPU"
        ) from error
    except torch.AcceleratorError as error:
        raise ModelError(
            f"compute.device={device}: the device failed while loading the model ({one_line(error)}); check the node's GPU and driver"
        ) from error
