"""A torch transformer with pooling → a graph that OpenVINO runs. The only module that imports openvino.

B = sequences of a batch, L = tokens of its longest, F = pooled states of a row.
"""

import warnings
from collections.abc import Callable
from queue import SimpleQueue
from textwrap import shorten
from typing import Any

import openvino as ov
import torch
from openvino.frontend import FrontEndManager, OpConversionFailure
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn
from transformers import PreTrainedModel

from embedder.core.errors import ModelError
from embedder.model.batches import Batch, PaddedBatch
from embedder.model.files.families import find_family, is_causal

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""Supported on a CPU; OpenVINO accepts float16 there, but computes in another type."""


class Pass(nn.Module):
    """Ids and lengths → the pooled states that a head or an exit reads, traceable."""

    def __init__(self, model: PreTrainedModel, read_states: Callable[[Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.read_states = model, read_states

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Return (B, F); the lengths separate tokens from padding."""
        mask_BL = torch.arange(ids_BL.shape[1]) < lengths_B.unsqueeze(-1)
        return self.read_states(PaddedBatch(ids_BL, lengths_B, mask_BL, mask_attention(self.model, mask_BL)))


class Graph:
    """A compiled pass. Batches run concurrently, one per stream; threads wait for a free stream."""

    def __init__(self, model: PreTrainedModel, read_states: Callable[[Batch], Tensor], dtype: torch.dtype, num_streams: int) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "NUM_STREAMS": num_streams,
            "INFERENCE_NUM_THREADS": num_streams,
            # pinning would put all actors of a machine on its first cores
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = ov.Core().compile_model(convert(Pass(model, read_states).eval()), "CPU", settings)
        except (RuntimeError, OpConversionFailure) as error:
            reason = shorten(str(error.__cause__ or error), 300)
            raise ModelError(f"family {model.config.model_type!r} does not convert ({reason})") from error
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(num_streams):
            self._idle.put(compiled.create_infer_request())

    def __call__(self, batch: Batch) -> Tensor:
        """Return the pooled states of a batch: (B, F)."""
        assert isinstance(batch, PaddedBatch)
        request = self._idle.get()
        try:
            request.start_async([batch.ids_BL.numpy(), batch.lengths_B.numpy()], share_inputs=True)
            request.wait()
            return torch.from_numpy(request.get_output_tensor(0).data.copy())
        finally:
            self._idle.put(request)


def convert(module: Pass) -> ov.Model:
    """Return the traced and converted pass, with dynamic batch size and length.

    `openvino.convert_model` does the same, but sends telemetry over the network unless it is disabled.
    """
    example = {"ids_BL": torch.full((2, 7), 5), "lengths_B": torch.tensor([7, 5])}
    with torch.no_grad(), warnings.catch_warnings():
        # about traced Python values, which are constant across batches
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(module, example_input=example, trace_kwargs={"check_trace": False})
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def mask_attention(model: PreTrainedModel, mask_BL: Tensor) -> Tensor | dict[str, Tensor]:
    """Return the attention mask of padding, causality and windows, in which every row attends to some token.

    Families that build their masks, in code that cannot be traced, accept finished masks: by layer type, or one if all layers are alike.
    """
    config: Any = model.config
    family = find_family(config.model_type)
    if family.attention == "eager":
        return mask_BL
    if not family.sliding:
        return mask_BL[:, None, None, :]
    positions_L = torch.arange(mask_BL.shape[1])
    ahead_LL = positions_L - positions_L.unsqueeze(-1)
    # padding follows the tokens, so a causal mask hides it
    seen = (ahead_LL <= 0)[None, None] if is_causal(config) else mask_BL[:, None, None, :]
    windows = {int(each.sliding_window) for each in model.modules() if getattr(each, "sliding_window", None)}  # type: ignore[arg-type]
    if not family.layer_lists and getattr(config, "sliding_window", None):  # its layers read the config, and have no window of their own
        windows = {int(config.sliding_window)}
    if not windows:
        return {"full_attention": seen} if family.layer_lists else seen
    (window,) = windows
    near_LL = (ahead_LL > -window) & (ahead_LL < window)
    # padding attends to itself: an empty row would be NaN, even with weight 0 in a mean
    near = (seen & near_LL) | (ahead_LL == 0)
    return {"full_attention": seen, "sliding_attention": near} if family.layer_lists else near
