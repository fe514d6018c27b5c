"""Which backends this environment has, and what it has not; told without importing torch, which takes seconds."""

import os
import shutil
from functools import cache
from importlib.util import find_spec
from subprocess import CalledProcessError

from embedder.config.compute import Backend
from embedder.core.errors import ConfigError

EMULATED = "embedding.float8: is emulated on a CPU, several times slower than bfloat16: good for judging its quality, not its speed"


def has_openvino() -> bool:
    """Whether the extra is installed."""
    return find_spec("openvino") is not None


def check_backend(backend: Backend) -> None:
    """Refuse a backend that is not installed."""
    if backend == "openvino" and not has_openvino():
        raise ConfigError(
            "compute.backend=openvino: is not installed; pip install '.[openvino]' from the checkout, or choose auto or torch"
        )


def has_c_compiler() -> bool:
    """Return whether there is a compiler of those that Triton looks for."""
    return any(shutil.which(name) for name in (os.environ.get("CC"), "gcc", "clang") if name)


@cache
def has_kernels() -> bool:
    """Return whether kernels in Triton can be built here."""
    return find_spec("triton") is not None and has_c_compiler()


@cache
def kernel_errors() -> tuple[type[Exception], ...]:
    """Return the errors, none a RuntimeError, that Triton raises for a kernel it cannot build or launch, or whose launcher gcc cannot."""
    if find_spec("triton") is None:
        return (CalledProcessError,)
    from triton.errors import TritonError

    return (CalledProcessError, TritonError)


def check_c_compiler(backend: Backend, device: str) -> None:
    """Refuse a backend whose kernels Triton builds, on a GPU node without the C compiler that it looks for."""
    if not device.startswith("cuda"):
        return
    if not has_c_compiler():
        raise ConfigError(
            f"compute.backend={backend}: no C compiler (CC, gcc or clang) on this node, and Triton builds its kernels with one; "
            "install gcc and libc6-dev, or choose auto or torch"
        )


def check_triton(layout: str) -> None:
    """Refuse fused layers where Triton is not installed or batches are padded."""
    if find_spec("triton") is None:
        raise ConfigError("compute.backend=fused: Triton is not installed; it comes with torch for CUDA, choose auto or torch elsewhere")
    if layout != "packed":
        raise ConfigError("compute.backend=fused: takes packed sequences, not padded ones; set compute.layout=packed and half precision")
