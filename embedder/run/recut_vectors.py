"""Settings of a cut and the parent's spec → the transform of each vector: rotated, cut, quantized; or a refusal."""

from dataclasses import dataclass

import pyarrow as pa

from embedder.config.output import CutTableConfig
from embedder.core.errors import ConfigError
from embedder.core.quantization import Floats, Ranges, cut_vectors, quantize
from embedder.core.rotation import digest_array
from embedder.core.spec import EmbeddingSpec
from embedder.model.calibration import Calibration, RangeKey, load_calibration
from embedder.table.vectors import vector_column


@dataclass(frozen=True, slots=True)
class VectorTransform:
    """Transform from a table's vectors to those of another space."""

    spec: EmbeddingSpec
    ranges: Ranges | None = None
    rotation_WW: Floats | None = None  # noqa: N815
    """Rotates the parent's vectors, unless they were rotated when they were made."""

    def apply(self, vectors_NW: Floats) -> pa.Array:
        """Rotate, truncate, normalize if the space does, and quantize; return the vector column of the new table."""
        rotated_NW = vectors_NW if self.rotation_WW is None else vectors_NW @ self.rotation_WW
        cut_ND = cut_vectors(rotated_NW, self.spec.dim, self.spec.normalize and self.spec.dim < rotated_NW.shape[1])
        return vector_column(quantize(cut_ND, self.spec.quantization, self.ranges))


def plan_cut(parent: EmbeddingSpec, output: CutTableConfig, place: str = "output") -> VectorTransform:
    """Return the transform to the space that embedding with these settings would have. `place` is the settings' section."""
    dim = output.dim or parent.dim
    if dim > parent.dim:
        raise ConfigError(f"{place}.dim={dim}: the parent's vectors have {parent.dim} components; choose 1 to {parent.dim}")
    if dim == parent.dim and output.quantization == "none" and not output.rotate:
        raise ConfigError(f"{place}.dim={dim}: the parent holds these very vectors; set a smaller dim, a quantization or rotate")
    if output.quantization == "binary" and dim % 8:
        raise ConfigError(f"{place}.dim={dim}: binary packs eight components into a byte; choose a multiple of 8")
    spec = parent.model_copy(update={"dim": dim, "quantization": output.quantization})
    needed = {"quantization=int8": output.quantization == "int8", "rotate=true": output.rotate}
    asked = [name for name, is_asked in needed.items() if is_asked]
    if output.calibration is None:
        if asked:
            raise ConfigError(f"{place}.{asked[0]}: needs an artifact of jobs.calibrate; set {place}.calibration")
        return VectorTransform(spec)
    if not asked:
        raise ConfigError(f"{place}.calibration={output.calibration!r}: has no effect without quantization int8 or rotate; leave it out")
    return calibrate_cut(spec, parent, load_calibration(output.calibration), output, place)


def calibrate_cut(
    spec: EmbeddingSpec, parent: EmbeddingSpec, calibration: Calibration, output: CutTableConfig, place: str
) -> VectorTransform:
    """Return the transform with the artifact's rotation and int8 ranges; refuse an artifact that does not belong to the parent."""
    where = f"{place}.calibration={output.calibration!r}"
    if spec.calibration not in (None, calibration.fingerprint):
        raise ConfigError(f"{where}: is not the artifact that the parent was made with ({spec.calibration}); give that one")
    if differences := calibration.differences(spec):
        raise ConfigError(f"{where}: was fitted for another model or recipe ({'; '.join(differences)})")
    spec = spec.model_copy(update={"calibration": calibration.fingerprint})
    rotation_WW = find_rotation(calibration, parent, where, f"{place}.rotate=true") if output.rotate else None
    if rotation_WW is not None:
        spec = spec.model_copy(update={"rotation": digest_array(rotation_WW)})
    ranges = calibration.ranges.get(RangeKey.of(spec)) if output.quantization == "int8" else None
    if output.quantization == "int8" and ranges is None:
        raise ConfigError(f"{where}: has no ranges of int8 for depth {spec.depth}, {spec.exit} exit, dim {spec.dim}; fit them first")
    return VectorTransform(spec, ranges, rotation_WW)


def find_rotation(calibration: Calibration, parent: EmbeddingSpec, where: str, asked: str) -> Floats:
    """Return the rotation of the parent's vectors, which must be whole and of the full model's space."""
    if parent.rotation is not None:
        raise ConfigError(f"{asked}: the parent's vectors are already rotated; leave it out")
    if calibration.rotation_WW is None:
        raise ConfigError(f"{asked}: {where} holds no rotation; make a new one with jobs.calibrate")
    width = len(calibration.rotation_WW)
    if parent.dim != width:
        raise ConfigError(f"{asked}: the parent's vectors have {parent.dim} of {width} components; give a table of whole ones")
    if parent.exit == "native" and parent.depth < calibration.full_depth:
        raise ConfigError(
            f"{asked}: the rotation is the full model's, and the parent's vectors are of depth {parent.depth} with a native exit"
        )
    return calibration.rotation_WW
