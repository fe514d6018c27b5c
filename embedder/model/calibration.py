"""A calibration: parameters fitted on a sample of a corpus, stored as a versioned artifact (safetensors and JSON) in a folder.

It holds exit maps, which make shallow depths usable, with their attention pooling, the principal axes of the full model's vectors, and the
ranges of int8. F = features, W = the full model's width, D = dim.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from embedder import __version__
from embedder.core.errors import ConfigError
from embedder.core.fidelity import Expected
from embedder.core.quantization import Floats, Ranges
from embedder.core.rotation import digest_array
from embedder.core.spec import EmbeddingSpec, Exit, digest
from embedder.core.storage import Store
from embedder.core.text_hashes import Hashes
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.neurons import KeptNeurons

FORMAT = 5
"""Incremented when an earlier artifact could be misread.

2: maps also read the mean weighted by token; 3: and the mean weighted by position; 4: the means of learned queries replace both, and
there is a rotation; 5: a token's weight is unbounded.
"""

DESCRIPTION, TENSORS = "calibration.json", "calibration.safetensors"
SEEN = "fitted_texts"

_FITTED_FOR = ("model_checksum", "pooling", "final_norm", "layer_norm", "prompt", "max_tokens", "chunking", "normalize")
"""Fields of the spec that must be equal when the calibration is fitted and used: all that layers see around a chunk's own text, which
maps and ranges are fitted on. Where a window ends and how far it overlaps may differ: its text is of the same kind."""

_FITTED_LATER: dict[str, Any] = {"template": None, "context_tokens": None}
"""Fields added later that must be equal too, with the value that earlier artifacts imply: at that value they are not in the fingerprint."""


@dataclass(frozen=True, slots=True)
class ExitMap:
    """Linear map from the concatenated, pooled and normalized states of some layers to the full model's vector before truncation."""

    layers: tuple[int, ...]
    """Ascending; 0 is the embedding layer, the last is the depth."""
    weight_FW: Floats  # noqa: N815
    bias_W: Floats  # noqa: N815


@dataclass(frozen=True, slots=True)
class RangeKey:
    """Identifies the vectors that ranges were fitted on: rotated or not, truncated to `dim`, unit length."""

    exit: Exit
    depth: int
    dim: int
    rotated: bool = False

    @staticmethod
    def of(spec: EmbeddingSpec) -> "RangeKey":
        """Return the key of a spec's vectors."""
        return RangeKey(spec.exit, spec.depth, spec.dim, spec.rotation is not None)

    def __str__(self) -> str:
        return f"{self.exit}.{self.depth}.{self.dim}{'.rotated' if self.rotated else ''}"

    @staticmethod
    def parse(name: str) -> "RangeKey":
        """Return the key of a name that `str` made."""
        exit_name, depth, dim, *rotated = name.split(".")
        return RangeKey("calibrated" if exit_name == "calibrated" else "native", int(depth), int(dim), bool(rotated))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Everything fitted for one model on one sample."""

    fitted_for: Mapping[str, Any]
    """Fields of the spec, with the model's name and revision for messages."""
    full_depth: int
    attention_pooling: AttentionPooling
    """The learned means that maps read, for every layer from the embedding up."""
    maps: Mapping[int, ExitMap]
    ranges: Mapping[RangeKey, Ranges]
    record: Mapping[str, Any] = field(default_factory=dict)
    """Sample, held-out quality, versions."""
    rotation_WW: Floats | None = None  # noqa: N815
    """Principal axes of the full model's vectors as columns, most variance first."""
    neurons: KeptNeurons | None = None
    """Of the feed-forward blocks of the layers that maps read; None: all are kept."""
    fitted_texts: Hashes | None = None
    """Of the documents fitted on; None for an artifact of earlier releases. Not in the fingerprint: no vector depends on it."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that can change a vector: all arrays, and the fields they were fitted for."""
        tensors = self.tensors()
        numbers = {name: [tensors[name].shape, digest_array(tensors[name])] for name in sorted(tensors)}
        layers = {str(depth): exit_map.layers for depth, exit_map in self.maps.items()}
        later = {name: self.fitted_for[name] for name, value in _FITTED_LATER.items() if self.fitted_for[name] != value}
        return digest(FORMAT, {name: self.fitted_for[name] for name in _FITTED_FOR} | later, layers, numbers)

    def tensors(self) -> dict[str, Floats]:
        """Return every array by its name in the safetensors file."""
        found: dict[str, Floats] = {"tokens": self.attention_pooling.token_weights_V, "attention": self.attention_pooling.queries_TQX}
        for depth, exit_map in self.maps.items():
            found |= {f"map.{depth}.weight": exit_map.weight_FW, f"map.{depth}.bias": exit_map.bias_W}
        if self.rotation_WW is not None:
            found["rotation"] = self.rotation_WW
        found |= self.neurons.tensors() if self.neurons else {}
        for key, ranges in self.ranges.items():
            found |= {f"range.{key}.low": ranges.low_D, f"range.{key}.high": ranges.high_D}
        return found

    def expect_fidelity(self, spec: EmbeddingSpec) -> Expected | None:
        """Return the fidelity of a spec's vectors on held-out chunks, None if it was not measured; ConfigError if it is damaged."""
        try:
            found = self.record.get("fidelity", {}).get(str(RangeKey.of(spec)), {}).get(spec.quantization)
            return None if found is None else Expected.from_fields(found)
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"embedding.calibration: its held-out figures are damaged ({error}); make it again with jobs.calibrate"
            ) from error

    def differences(self, spec: EmbeddingSpec) -> list[str]:
        """Return the differing fields of a spec, each as `name: fitted → asked`."""
        asked = spec.model_dump()
        named = [name for name in (*_FITTED_FOR, *_FITTED_LATER) if self.fitted_for[name] != asked[name]]
        return [
            f"model: {self.fitted_for['model']}@{self.fitted_for['revision']} → {spec.model}@{spec.revision}"
            if name == "model_checksum"
            else f"{name}: {self.fitted_for[name]!r} → {asked[name]!r}"
            for name in named
        ]


def fitted_for(spec: EmbeddingSpec) -> dict[str, Any]:
    """Return the fields of a spec that a calibration depends on."""
    values = spec.model_dump()
    return {name: values[name] for name in ("model", "revision", *_FITTED_FOR, *_FITTED_LATER)}


def write_calibration(calibration: Calibration, uri: str) -> None:
    """Write the artifact, the description last; ConfigError if the folder holds a different one."""
    folder = Store(uri)
    description = {
        "format": FORMAT,
        "fingerprint": calibration.fingerprint,
        "fitted_for": dict(calibration.fitted_for),
        "full_depth": calibration.full_depth,
        "maps": {depth: list(exit_map.layers) for depth, exit_map in sorted(calibration.maps.items())},
        "ranges": [str(key) for key in calibration.ranges],
        "record": dict(calibration.record),
    }
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in calibration.tensors().items()}
    seen = {} if calibration.fitted_texts is None else {SEEN: calibration.fitted_texts}
    wrote = Store(folder.child(TENSORS)).write_once(save(tensors | seen))
    if not wrote and load_calibration(uri).fingerprint != calibration.fingerprint:
        raise ConfigError(f"output.uri={uri!r}: holds another calibration, which tables may use; choose another folder")
    Store(folder.child(DESCRIPTION)).write_once(json.dumps(description, indent=1).encode())


def load_calibration(uri: str) -> Calibration:
    """Read an artifact and check it against its fingerprint; ConfigError if it is missing, damaged or of another format."""
    folder, where = Store(uri), f"embedding.calibration={uri!r}"
    found = Store(folder.child(DESCRIPTION))
    if found.info() is None:
        raise ConfigError(f"{where}: no {DESCRIPTION} there; make one with jobs.calibrate")
    try:
        with found.open_input() as file:
            description = json.load(file)
        if description["format"] != FORMAT:
            raise ConfigError(f"{where}: format {description['format']!r}, expected {FORMAT}; make it again with jobs.calibrate")
        with Store(folder.child(TENSORS)).open_input() as file:
            tensors = load(file.read())
        if any(name.startswith("layers.") for name in tensors):
            raise ConfigError(
                f"{where}: holds layers trained by calibrate.method=distill, which embedder {__version__} does not "
                "load; make it again with jobs.calibrate"
            )
        fitted = _FITTED_LATER | description["fitted_for"]
        calibration = Calibration(
            fitted_for={name: fitted[name] for name in ("model", "revision", *_FITTED_FOR, *_FITTED_LATER)},
            full_depth=description["full_depth"],
            attention_pooling=AttentionPooling(tensors["tokens"], tensors["attention"]),
            maps={
                int(depth): ExitMap(tuple(layers), tensors[f"map.{depth}.weight"], tensors[f"map.{depth}.bias"])
                for depth, layers in description["maps"].items()
            },
            ranges={
                RangeKey.parse(name): Ranges(tensors[f"range.{name}.low"], tensors[f"range.{name}.high"]) for name in description["ranges"]
            },
            record=description["record"],
            rotation_WW=tensors.get("rotation"),
            neurons=KeptNeurons.of(tensors),
            fitted_texts=tensors.get(SEEN),
        )
        is_intact = calibration.fingerprint == description["fingerprint"]
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{where}: damaged ({type(error).__name__}: {error}); make it again with jobs.calibrate") from error
    # the fingerprint does not cover full_depth, but the embedding and each layer up to it have learned queries
    if not is_intact or calibration.full_depth != len(calibration.attention_pooling.queries_TQX) - 1:
        raise ConfigError(f"{where}: its contents do not match its fingerprint; make it again with jobs.calibrate")
    return calibration
