"""A calibration: what was fitted on a sample of a corpus, kept as a versioned artifact (safetensors and JSON) in a folder.

It holds exit maps, which make shallow depths usable, what they weigh tokens by, the principal axes of the full model's vectors, and the
ranges of int8. F = features, W = the full model's width, D = dim.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from embedder import __version__
from embedder.core.errors import ConfigError
from embedder.core.quantization import Ranges
from embedder.core.rotation import digest_array
from embedder.core.spec import EmbeddingSpec, Exit, digest
from embedder.core.storage import Options, Store
from embedder.model.attention_pooling import AttentionPooling

Floats = npt.NDArray[np.float32]

FORMAT = 5
"""Raised when an artifact of before could be misread.

2: maps also read the mean weighted by token; 3: that weighted by place; 4: in the place of both, the means of learned queries;
and there is a rotation; 5: what a token counts has no bounds.
"""

DESCRIPTION, TENSORS = "calibration.json", "calibration.safetensors"

_FITTED_FOR = ("model_checksum", "pooling", "final_norm", "layer_norm", "prompt", "max_tokens", "chunking", "normalize")
"""Fields of the spec that a calibration was made with and cannot be used without."""


@dataclass(frozen=True, slots=True)
class ExitMap:
    """From the pooled and normalised states of some layers, side by side, to the full model's vector before the cut."""

    layers: tuple[int, ...]
    """In rising order, 0 the embedding layer, the last one the depth."""
    weight_FW: Floats  # noqa: N815
    bias_W: Floats  # noqa: N815


@dataclass(frozen=True, slots=True)
class RangeKey:
    """Which vectors a pair of ranges was taken from: turned or not, cut to `dim`, unit length."""

    exit: Exit
    depth: int
    dim: int
    rotated: bool = False

    @staticmethod
    def of(spec: EmbeddingSpec) -> "RangeKey":
        """Name the vectors of a spec."""
        return RangeKey(spec.exit, spec.depth, spec.dim, spec.rotation is not None)

    def __str__(self) -> str:
        return f"{self.exit}.{self.depth}.{self.dim}{'.rotated' if self.rotated else ''}"

    @staticmethod
    def parse(name: str) -> "RangeKey":
        """Read back what str gave."""
        exit_name, depth, dim, *rotated = name.split(".")
        return RangeKey("calibrated" if exit_name == "calibrated" else "native", int(depth), int(dim), bool(rotated))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Everything fitted for one model on one sample."""

    fitted_for: Mapping[str, Any]
    """The fields of the spec it depends on, with the model's name and revision for messages."""
    full_depth: int
    weighing: AttentionPooling
    """What tokens count in the learned means that maps read, at every layer from the embedding up."""
    maps: Mapping[int, ExitMap]
    ranges: Mapping[RangeKey, Ranges]
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it was made and how good it is: sample, held-out figures, versions."""
    rotation_WW: Floats | None = None  # noqa: N815
    """Principal axes of the full model's vectors as columns, that of the most variance first."""

    @property
    def fingerprint(self) -> str:
        """Digest what can move a vector: every number, and what they were fitted for."""
        tensors = self.tensors()
        numbers = {name: [tensors[name].shape, digest_array(tensors[name])] for name in sorted(tensors)}
        layers = {str(depth): exit_map.layers for depth, exit_map in self.maps.items()}
        return digest(FORMAT, {name: self.fitted_for[name] for name in _FITTED_FOR}, layers, numbers)

    def tensors(self) -> dict[str, Floats]:
        """Name every array, as the safetensors file does."""
        found: dict[str, Floats] = {"tokens": self.weighing.token_weights_V, "attention": self.weighing.queries_TQX}
        for depth, exit_map in self.maps.items():
            found |= {f"map.{depth}.weight": exit_map.weight_FW, f"map.{depth}.bias": exit_map.bias_W}
        if self.rotation_WW is not None:
            found["rotation"] = self.rotation_WW
        for key, ranges in self.ranges.items():
            found |= {f"range.{key}.low": ranges.low_D, f"range.{key}.high": ranges.high_D}
        return found

    def differences(self, spec: EmbeddingSpec) -> list[str]:
        """Say in what a spec differs from the one this was fitted for, as `name: fitted → asked`."""
        asked = spec.model_dump()
        named = [name for name in _FITTED_FOR if self.fitted_for[name] != asked[name]]
        return [
            f"model: {self.fitted_for['model']}@{self.fitted_for['revision']} → {spec.model}@{spec.revision}"
            if name == "model_checksum"
            else f"{name}: {self.fitted_for[name]!r} → {asked[name]!r}"
            for name in named
        ]


def fitted_for(spec: EmbeddingSpec) -> dict[str, Any]:
    """Take from a spec what a calibration depends on."""
    values = spec.model_dump()
    return {name: values[name] for name in ("model", "revision", *_FITTED_FOR)}


def write_calibration(calibration: Calibration, uri: str, options: Options | None = None) -> None:
    """Write the artifact, the description last; one that is there already is refused unless it is the same."""
    folder = Store(uri, options)
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
    wrote = Store(folder.child(TENSORS), options).write_once(save(tensors))
    if not wrote and load_calibration(uri, options).fingerprint != calibration.fingerprint:
        raise ConfigError(f"output.uri={uri!r}: holds another calibration, which tables may use; choose another folder")
    Store(folder.child(DESCRIPTION), options).write_once(json.dumps(description, indent=1).encode())


def load_calibration(uri: str, options: Options | None = None) -> Calibration:
    """Read an artifact and check it against its own fingerprint; ConfigError if there is none, or one that cannot be used."""
    folder = Store(uri, options)
    found = Store(folder.child(DESCRIPTION), options)
    if found.info() is None:
        raise ConfigError(f"embedding.calibration={uri!r}: no {DESCRIPTION} there; make one with jobs.calibrate")
    try:
        with found.open_input() as file:
            description = json.load(file)
        if description["format"] != FORMAT:
            raise ConfigError(f"embedding.calibration={uri!r}: format {description['format']!r}, expected {FORMAT}; make it anew")
        with Store(folder.child(TENSORS), options).open_input() as file:
            tensors = load(file.read())
        if any(name.startswith("layers.") for name in tensors):
            raise ConfigError(
                f"embedding.calibration={uri!r}: holds layers trained by calibrate.method=distill, which embedder {__version__} does not "
                "load; make it again with jobs.calibrate"
            )
        calibration = Calibration(
            fitted_for={name: description["fitted_for"][name] for name in ("model", "revision", *_FITTED_FOR)},
            full_depth=description["full_depth"],
            weighing=AttentionPooling(tensors["tokens"], tensors["attention"]),
            maps={
                int(depth): ExitMap(tuple(layers), tensors[f"map.{depth}.weight"], tensors[f"map.{depth}.bias"])
                for depth, layers in description["maps"].items()
            },
            ranges={
                RangeKey.parse(name): Ranges(tensors[f"range.{name}.low"], tensors[f"range.{name}.high"]) for name in description["ranges"]
            },
            record=description["record"],
            rotation_WW=tensors.get("rotation"),
        )
        is_whole = calibration.fingerprint == description["fingerprint"]
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"embedding.calibration={uri!r}: damaged ({reason}); make it anew with jobs.calibrate") from error
    # the depth that queries run is in no fingerprint, but there are learned queries for each layer up to it, and the embedding
    if not is_whole or calibration.full_depth != len(calibration.weighing.queries_TQX) - 1:
        raise ConfigError(f"embedding.calibration={uri!r}: its numbers are not those of its fingerprint; make it anew with jobs.calibrate")
    return calibration
