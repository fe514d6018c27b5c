"""A spec, a model's recipe and a calibration → the layers up to the depth, and what follows them."""

import torch
from torch import nn
from transformers import PreTrainedModel

from embedder.core.errors import ModelError
from embedder.core.rotation import Floats, check_rotation
from embedder.core.spec import EmbeddingSpec
from embedder.model.calibration import Calibration
from embedder.model.exits import Exit, ExitPooler
from embedder.model.files import ModelRecipe
from embedder.model.loading import load_trained, load_transformer
from embedder.model.pooling import Head, load_steps


def load_layers(spec: EmbeddingSpec, recipe: ModelRecipe, calibration: Calibration | None, dtype: torch.dtype) -> PreTrainedModel:
    """Load the layers up to the depth; where those of a calibrated exit were trained too, their weights take the place of the model's."""
    model = load_transformer(recipe, spec.depth, spec.final_norm, dtype)
    if spec.exit != "native" and calibration is not None:
        load_trained(model, calibration.maps[spec.depth])
    return model


def load_way_out(
    spec: EmbeddingSpec, recipe: ModelRecipe, calibration: Calibration | None, rotation_WW: Floats | None
) -> tuple[Head, Exit | None]:
    """Load what follows the layers: the model's own modules, or the map of a calibrated exit, behind which they are not run again."""
    if rotation_WW is None and spec.rotation is not None and calibration is not None:
        rotation_WW = calibration.rotation_WW
    check_rotation(rotation_WW, spec, "embedding.rotate")
    if spec.exit == "native":
        return Head(load_steps(recipe.steps), spec, rotation_WW), None
    if calibration is None or calibration.fingerprint != spec.calibration:
        raise ModelError(f"embedding.calibration: not the artifact of the spec ({spec.calibration}); give every worker the same")
    pool = ExitPooler(spec.pooling, calibration.weighing)
    leave = Exit(calibration.maps[spec.depth], pool, recipe.hidden_size)
    return Head(nn.Sequential(), spec.model_copy(update={"layer_norm": False}), rotation_WW), leave
