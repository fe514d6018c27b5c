"""Feed-forward blocks with fewer neurons: which are kept, and the output weights that were fitted again on them.

L = layers, K = neurons kept of a block, H = hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedder.core.quantization import Floats


@dataclass(frozen=True, slots=True)
class KeptNeurons:
    """For every layer of the full model: the neurons of its feed-forward block that are kept, and what they add to the states."""

    places_LK: npt.NDArray[np.int32]  # noqa: N815
    """Ascending."""
    weight_LKH: Floats  # noqa: N815
    bias_LH: Floats  # noqa: N815
    """Not used where the model's blocks have none."""

    def tensors(self) -> dict[str, np.ndarray]:
        """Return every array by its name in a calibration."""
        return {"neurons.places": self.places_LK, "neurons.weight": self.weight_LKH, "neurons.bias": self.bias_LH}

    @staticmethod
    def of(tensors: Mapping[str, np.ndarray]) -> "KeptNeurons | None":
        """Return those of a calibration's arrays; None if it keeps all neurons."""
        if "neurons.places" not in tensors:
            return None
        return KeptNeurons(*(tensors[f"neurons.{name}"] for name in ("places", "weight", "bias")))
