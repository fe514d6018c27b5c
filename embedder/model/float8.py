"""Linear modules of the layers → the same in float8: weights are held so, states become so token by token as they come.

N = tokens, I = components that go in, O = components that come out. Codes are float8; times their row's scale they are the numbers.
"""

import logging
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

from embedder.core.errors import ConfigError, ModelError
from embedder.model.backends import EMULATED

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
LEAST_SCALE = 1e-12
"""Of a row of zeros, which stays one, and of rows so small that dividing by their own scale could pass beyond the largest code."""
WIDTHS = 16
"""Both widths of a device's product must be multiples of this."""
_FLOAT8_COMPUTE_CAPABILITY = (8, 9)
_HAS_CPU_PRODUCT: bool = torch._C._dispatch_has_kernel_for_dispatch_key("aten::_scaled_mm_v2", "CPU")
"""torch 2.11 and 2.12 multiply by rows' scales on CUDA alone."""

logger = logging.getLogger("embedder")


class Float8Linear(nn.Module):
    """A linear module with a scale for each of its rows, and one for each token as it comes; it gives bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        codes_OI, scales_O1 = encode_rows(linear.weight)
        self.codes_OI = nn.Parameter(codes_OI, requires_grad=False)
        self.scales_1O = nn.Parameter(scales_O1.t().contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Return (…, O) of (…, I)."""
        codes_NI, scales_N1 = encode_rows(states.reshape(-1, states.shape[-1]))
        multiply = multiply_as_one_step if torch.compiler.is_compiling() else multiply_codes
        given_NO = multiply(codes_NI, scales_N1, self.codes_OI, self.scales_1O, self.bias)
        return given_NO.reshape(*states.shape[:-1], -1)


def multiply_codes(codes_NI: Tensor, scales_N1: Tensor, codes_OI: Tensor, scales_1O: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return the product of states and weights in bfloat16, (N, O)."""
    if codes_NI.device.type == "cpu" and not _HAS_CPU_PRODUCT:
        product_NO = codes_NI.float() @ codes_OI.t().float() * (scales_N1 * scales_1O)
        return (product_NO if bias_O is None else product_NO + bias_O).bfloat16()
    return scaled_mm(
        codes_NI,
        codes_OI.t(),
        scales_N1,
        ScalingType.RowWise,
        scales_1O,
        ScalingType.RowWise,
        bias=bias_O,
        output_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


@torch.library.custom_op("embedder::multiply_codes", mutates_args=())
def multiply_as_one_step(codes_NI: Tensor, scales_N1: Tensor, codes_OI: Tensor, scales_1O: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return the same product as one step of a compiled graph: torch 2.11 cannot trace its own. Uncompiled, an op adds host time."""
    return multiply_codes(codes_NI, scales_N1, codes_OI, scales_1O, bias_O)


@multiply_as_one_step.register_fake
def _(codes_NI: Tensor, _scales_N1: Tensor, codes_OI: Tensor, _scales_1O: Tensor, _bias_O: Tensor | None) -> Tensor:
    return codes_NI.new_empty((codes_NI.shape[0], codes_OI.shape[0]), dtype=torch.bfloat16)


def encode_rows(rows_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and each row's scale (N, 1): its largest component becomes the largest code.

    By rows, so that a token does not depend on those it shares a batch with, not even where these are no numbers.
    """
    scales_N1 = (rows_NI.abs().amax(dim=1, keepdim=True).float() / LARGEST).clamp(min=LEAST_SCALE)
    return (rows_NI / scales_N1).to(FLOAT8).contiguous(), scales_N1


def use_float8(layers: nn.ModuleList) -> None:
    """Replace the linear modules of loaded layers, on whichever device they are."""
    unfit = find_unfit(layers)
    if unfit:
        raise ModelError(unfit)
    for name, linear in list_linear(layers).items():
        layers.set_submodule(name, Float8Linear(linear))
    if any(parameter.device.type == "cpu" for parameter in layers.parameters()):
        warn_of_emulation()


def list_linear(layers: nn.ModuleList) -> dict[str, nn.Linear]:
    """Find the linear modules, by their path below the layers."""
    return {name: module for name, module in layers.named_modules() if isinstance(module, nn.Linear)}


def find_unfit(layers: nn.ModuleList) -> str | None:
    """Return the modules whose widths no device multiplies in float8, as an error text; None if there are none."""
    widths = {name: (each.in_features, each.out_features) for name, each in list_linear(layers).items()}
    unfit = [f"{name} ({wide} to {given})" for name, (wide, given) in widths.items() if wide % WIDTHS or given % WIDTHS]
    if not unfit:
        return None
    return f"embedding.float8=true: widths must be multiples of {WIDTHS}, not so {unfit[0]}, {len(unfit)} modules in all; leave it out"


def check_device(device: str) -> None:
    """Refuse a GPU that has no products in float8."""
    if torch.device(device).type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _FLOAT8_COMPUTE_CAPABILITY:
        major, minor = capability
        raise ConfigError(
            f"embedding.float8=true: {device} has compute capability {major}.{minor}, products in float8 need 8.9 (Ada, Hopper) or more; "
            "leave it out, or run on such a GPU"
        )


@cache
def warn_of_emulation() -> None:
    """Log the warning once per process."""
    logger.warning(EMULATED)
