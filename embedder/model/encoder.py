"""Token ids → vectors, by a transformer cut to the spec's depth.

N = rows given, B = rows of a batch, H = hidden size, D = dim, W = width of what a pass gives. `hidden` is laid out as its batch is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from threading import Lock
from types import MethodType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from embedder.config.compute import Backend, Layout
from embedder.core.errors import ModelError
from embedder.core.quantization import Floats
from embedder.core.spec import EmbeddingSpec, Pooling
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.backends import has_kernels
from embedder.model.batches import Batch, LayoutName, make_layout
from embedder.model.calibration import Calibration
from embedder.model.compiling import compile_forward
from embedder.model.exits import Exit, ExitPooler, normalise_states
from embedder.model.files.families import find_family
from embedder.model.files.recipe import find_recipe
from embedder.model.files.tokenizer import count_prompt_tokens, load_tokenizer
from embedder.model.float8 import use_float8
from embedder.model.fused import find_unfusable, fuse_layers
from embedder.model.late_chunking import Spans
from embedder.model.loading import BackendName, load_head_and_exit, load_layers, resolve_backend, resolve_dtype, resolve_layout
from embedder.model.memory import free_device_bytes, plan_token_budget
from embedder.model.neurons import KeptNeurons
from embedder.model.parity_check import FLOAT8_COSINE, LAYOUT_COSINE, LAYOUT_PROBE_TOKENS, agree_on_backend, agree_on_layout, make_probe
from embedder.model.pooling import Head, find_pooler, pool_without_first
from embedder.model.results import Encoded, ExitStates
from embedder.model.run_batches import Forward, Queued, queue_rows
from embedder.model.taps import LayerPooler, PoolLayer, tap_layers
from embedder.model.varlen_attention import PACKED

TappedForward = Callable[[Batch], tuple[Tensor, Tensor]]


class Encoder:
    """A transformer of `spec.depth` layers with its pooling and head; state is set here and never after.

    Threads may share it: one lays out its batches while another waits for the device to end with its own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head,
        exit_map: Exit | None,
        pooling: Pooling,
        device: torch.device,
        layout: LayoutName = "padded",
        num_unpooled: int = 0,
    ) -> None:
        self._config: Any = model.config
        self._config.use_cache = False  # a causal model would keep the keys and values of all layers
        self._family = find_family(self._config.model_type)
        self._layout = make_layout(layout, self._config, device)
        self._run = partial(queue_rows, self._layout, device)
        model.set_attn_implementation(self._layout.attention)
        self._model: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
        self._head = head.to(device)
        self._exit = exit_map.place(device) if exit_map else None
        self._pooling, self._pool, self._num_unpooled = pooling, pool_without_first(find_pooler(pooling), num_unpooled), num_unpooled
        self._device = device
        self._graph: Forward | None = None
        self._turn = Lock()
        self._fused: list[Any] = []
        self.backends: tuple[BackendName, ...] = ("torch",)
        """Backends that agree with torch on the probe, among which `use_backend` switches."""

    @classmethod
    def load(
        cls,
        spec: EmbeddingSpec,
        device: str = "cpu",
        dtype: str = "auto",
        calibration: Calibration | None = None,
        layout: Layout = "auto",
        backend: Backend = "torch",
        rotation_WW: Floats | None = None,
        neurons: KeptNeurons | None = None,
    ) -> "Encoder":
        """Load the model that the spec was resolved with; refuse files that are not the same or do not fit.

        A spec with a calibrated exit needs the calibration it names; one with a rotation the calibration too, or the rotation alone.
        Such an exit runs the neurons of its calibration; `neurons` are for fitting one.
        """
        recipe = find_recipe(spec)
        if recipe.checksum != spec.model_checksum:
            raise ModelError(
                f"embedding.model={spec.model!r}: the files here (checksum {recipe.checksum[:12]}) are not those the spec was "
                f"resolved with ({spec.model_checksum[:12]}); give every worker the same model"
            )
        chosen_dtype = resolve_dtype(dtype, device, recipe.family, spec.float8)
        chosen_layout = resolve_layout(layout, device, chosen_dtype, recipe.family)
        head, exit_map = load_head_and_exit(spec, recipe, calibration, rotation_WW)
        neurons = calibration.neurons if calibration and spec.exit == "calibrated" else neurons
        num_unpooled = 0 if spec.include_prompt else count_prompt_tokens(load_tokenizer(recipe), spec.prompt)
        chosen_backend = resolve_backend(backend, device, chosen_dtype, chosen_layout, spec.float8, spec.late_tokens is not None)
        if chosen_backend == "openvino":
            model = load_layers(recipe, spec, torch.float32, neurons)
            exact = cls(model, head, exit_map, spec.pooling, torch.device(device), num_unpooled=num_unpooled)
            converted = agree_on_backend(exact.probe_rows(), partial(exact.converted, chosen_dtype), backend)
            if converted is not None:
                return converted
        model = load_layers(recipe, spec, chosen_dtype, neurons)
        build = partial(cls, model, head, exit_map, spec.pooling, torch.device(device), num_unpooled=num_unpooled)
        is_agreed = chosen_layout == "padded" or torch.device(device).type == "cpu"
        encoder = build(chosen_layout) if is_agreed else agree_on_layout(build, layout)
        if spec.float8:  # after layouts agreed: it makes more of a last bit than the two may differ by
            use_float8(encoder.layers)
        if chosen_backend in ("compiled", "fused"):
            change = encoder.compile_layers if chosen_backend == "compiled" else encoder.fuse_layers
            agree_on_backend(encoder.probe_rows(), change, backend, FLOAT8_COSINE if spec.float8 else LAYOUT_COSINE)
        elif backend == "auto" and encoder.device_type == "cuda":
            encoder.offer_fused(FLOAT8_COSINE if spec.float8 else LAYOUT_COSINE)
        return encoder

    def compile_layers(self) -> "Encoder":
        """Have torch compile the layers: one for all, since they share their code, for any number of sequences and tokens."""
        forwards = {each: compile_forward(each.forward) for each in {type(layer) for layer in self.layers}}
        for layer in self.layers:
            layer.forward = MethodType(forwards[type(layer)], layer)  # hooks, by which layers are tapped, stay outside
        return self

    def fuse_layers(self) -> "Encoder":
        """Run the layers by fused kernels; ModelError for layers of another shape, and for padded batches."""
        if self._layout.attention != PACKED:
            raise ModelError("fused layers take packed sequences; set compute.layout and compute.dtype to auto")
        fuse_layers(self.layers, self._config)
        self._fused = [layer.forward for layer in self.layers]
        return self

    def offer_fused(self, least: float = LAYOUT_COSINE) -> None:
        """Add fused layers to the backends if this model and machine have them and they agree on the probe; go on running torch."""
        if self._layout.attention != PACKED or not has_kernels() or find_unfusable(self.layers, self._config):
            return
        if agree_on_backend(self.probe_rows(), self.fuse_layers, "auto", least, "fused") is not None:
            self.backends = ("torch", "fused")
        self.use_backend("torch")

    def use_backend(self, name: BackendName) -> None:
        """Run the layers by torch or by the fused kernels from now on."""
        with self._turn:
            for layer, forward in zip(self.layers, self._fused, strict=bool(self._fused)):
                if name == "fused":
                    layer.forward = forward
                else:
                    layer.__dict__.pop("forward", None)  # the class's own shows again

    def converted(self, dtype: torch.dtype) -> "Encoder":
        """Return this encoder with layers and pooling run by OpenVINO, one batch per stream; head and taps stay in torch."""
        from embedder.model.openvino import Graph  # extra openvino

        converted = copy(self)
        with self._pooled() as forward:
            converted._graph = Graph(self._model, forward, dtype, torch.get_num_threads())
        return converted

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self._head.dim

    @property
    def device_type(self) -> str:
        """cpu or cuda."""
        return self._device.type

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers really built."""
        layers = self._model.get_submodule(self._family.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on the device."""
        return sum(parameter.nbytes for parameter in (*self._model.parameters(), *self._head.parameters()))

    def probe(self) -> np.ndarray:
        """Return the vector of a fixed sequence of token ids; equal models, settings and dtypes give equal vectors."""
        token_ids = make_probe(self._config, longer=self._num_unpooled)
        vector: np.ndarray = self.encode(token_ids, len(token_ids.values)).vectors_ND[0]
        return vector

    def probe_rows(self) -> np.ndarray:
        """Return the vectors of fixed sequences of several lengths in one batch; equal layouts give equal vectors."""
        token_ids = make_probe(self._config, LAYOUT_PROBE_TOKENS, self._num_unpooled)
        vectors_ND: np.ndarray = self.encode(token_ids, len(token_ids) * len(token_ids[0])).vectors_ND
        return vectors_ND

    def find_token_budget(self, share: float = 1.0) -> int:
        """Return the tokens of a forward pass that fit into the free part of this share of the device's memory."""
        return plan_token_budget(free_device_bytes(self._device, share), self._config, next(self._model.parameters()).element_size())

    def encode(self, token_ids: pa.ListArray, token_budget: int, spans: Spans | None = None) -> Encoded:
        """Embed rows of token ids, special tokens and prompt included, or the spans in them; order and number are kept.

        Where the device runs out of memory the budget is halved, as often as needed, down to one row a batch.
        """
        return self.queue(token_ids, token_budget, spans).fetch()

    def queue(self, token_ids: pa.ListArray, token_budget: int, spans: Spans | None = None) -> Queued:
        """Queue all batches on the device without waiting for them."""
        with self._turn, self._pooled() as forward:
            exit_map = self._exit or nn.Identity()
            return self._run(token_ids, token_budget, self.dim, lambda batch: self._head(exit_map(forward(batch))), spans)

    def tap(
        self,
        token_ids: pa.ListArray,
        token_budget: int,
        depths: Sequence[int],
        weighing: AttentionPooling | None = None,
        spans: Spans | None = None,
    ) -> dict[int, np.ndarray]:
        """Return the pooled states of all rows or spans by depth, from one pass: the inputs of the head of an encoder of that depth.

        Depth 0 is the embedding layer's output. Order and number are kept. With a weighing, states are pooled as exits read them.
        """
        assert set(depths) <= set(range(len(self.layers) + 1)), (depths, len(self.layers))
        pool = self._layer_pooler if weighing is None else self._exit_pooler(weighing)()
        width = len(depths) * (len(self._pooling.split("+")) if weighing is None else weighing.num_poolings) * int(self._config.hidden_size)
        with self._turn, self._tapped(depths, pool) as forward:
            queued = self._run(token_ids, token_budget, width, lambda batch: forward(batch)[0], spans)
        return dict(zip(depths, np.split(queued.fetch().vectors_ND, len(depths), axis=1), strict=True))

    def tap_exits(
        self,
        token_ids: pa.ListArray,
        token_budget: int,
        layers: Sequence[int],
        depths: Sequence[int],
        weighing: AttentionPooling,
        keep: Callable[[LayerPooler], LayerPooler] | None = None,
    ) -> ExitStates:
        """Return the states that exits at `depths`, some of the `layers`, are fitted on, from one full pass; `keep` wraps their pooler."""
        hidden_size, places = int(self._config.hidden_size), [list(layers).index(depth) for depth in depths]
        pool = self._exit_pooler(weighing)
        block, own = weighing.num_poolings * hidden_size, pool.own * hidden_size
        width = len(layers) * block
        with self._turn, self._tapped(layers, keep(pool()) if keep else pool()) as forward:

            def finish(batch: Batch) -> Tensor:
                states_BF, hidden = forward(batch)
                pooled = [states_BF[:, place * block + own :][:, :hidden_size] for place in places]
                vectors = [self._head(pooled_BH) for pooled_BH in [*pooled, self._pool(hidden, batch)]]
                return torch.cat([normalise_states(states_BF, hidden_size), *vectors], dim=1)

            queued = self._run(token_ids, token_budget, width + (len(depths) + 1) * self.dim, finish)
        rows_NX = queued.fetch().vectors_ND
        native = np.split(rows_NX[:, width:], len(depths) + 1, axis=1)
        return ExitStates(rows_NX[:, :width], dict(zip(depths, native[:-1], strict=True)), native[-1])

    def _exit_pooler(self, weighing: AttentionPooling) -> ExitPooler:
        return ExitPooler(self._pooling, weighing).to(self._device)

    def _layer_pooler(self, batch: Batch) -> PoolLayer:
        return lambda _depth, hidden: self._pool(hidden, batch)

    @contextmanager
    def _pooled(self) -> Iterator[Forward]:
        """Yield the function from a batch to the pooled states that the head, or the map of an exit, reads."""
        if self._graph is not None:
            yield self._graph
        elif self._exit is None:
            yield lambda batch: self._pool(self._hidden(batch), batch)
        else:
            with self._tapped(self._exit.layers, self._exit.pool()) as forward:
                yield lambda batch: forward(batch)[0]

    @contextmanager
    def _tapped(self, depths: Sequence[int], pool: LayerPooler) -> Iterator[TappedForward]:
        """Yield a forward pass that also pools the states at these depths: side by side, (B, T·H), and the last state."""
        path = self._family.final_norm
        final_norm = self._model.get_submodule(path) if path else nn.Identity()
        with tap_layers(self.layers, final_norm, pool, depths) as taps:

            def forward(batch: Batch) -> tuple[Tensor, Tensor]:
                taps.start(batch)
                hidden = self._hidden(batch)
                return taps.collect(depths), hidden

            yield forward

    def _hidden(self, batch: Batch) -> Tensor:
        return self._model(**batch.inputs()).last_hidden_state  # type: ignore[no-any-return]
