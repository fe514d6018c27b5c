"""Settings of a cut and the parent's spec → what becomes of each vector: turned, cut, quantized; or a refusal."""

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
    """What a table's vectors become."""

    spec: EmbeddingSpec
    ranges: Ranges | None = None
    turn_WW: Floats | None = None  # noqa: N815
    """What the parent's vectors are turned by, where they were not when they were made."""

    def apply(self, vectors_NW: Floats) -> pa.Array:
        """Turn, cut, give length 1 again where the space has it, quantize: the vector column of the new table."""
        turned_NW = vectors_NW if self.turn_WW is None else vectors_NW @ self.turn_WW
        cut_ND = cut_vectors(turned_NW, self.spec.dim, self.spec.normalize and self.spec.dim < turned_NW.shape[1])
        return vector_column(quantize(cut_ND, self.spec.quantization, self.ranges))


def plan_cut(parent: EmbeddingSpec, output: CutTableConfig, place: str = "output") -> VectorTransform:
    """Give the spec that embedding with these settings would have: equal vectors, equal space. `place` is where they stand."""
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
    where = f"{place}.calibration={output.calibration!r}"
    if not asked:
        raise ConfigError(f"{where}: has no effect without quantization int8 or rotate; leave it out")
    calibration = load_calibration(output.calibration)
    check_fits(calibration, spec, where)
    spec = spec.model_copy(update={"calibration": calibration.fingerprint})
    turn_WW = find_axes(calibration, parent, where, f"{place}.rotate=true") if output.rotate else None
    if turn_WW is not None:
        spec = spec.model_copy(update={"rotation": digest_array(turn_WW)})
    return VectorTransform(spec, find_ranges(calibration, spec, where) if output.quantization == "int8" else None, turn_WW)


def check_fits(calibration: Calibration, spec: EmbeddingSpec, where: str) -> None:
    """Refuse an artifact that the parent's vectors have nothing to do with."""
    if spec.calibration not in (None, calibration.fingerprint):
        raise ConfigError(f"{where}: is not the artifact that the parent was made with ({spec.calibration}); give that one")
    differences = calibration.differences(spec)
    if differences:
        raise ConfigError(f"{where}: was fitted for another model or recipe ({'; '.join(differences)})")


def find_axes(calibration: Calibration, parent: EmbeddingSpec, where: str, asked: str) -> Floats:
    """Find what turns the parent's vectors, which are to be whole and of the full model's space."""
    if parent.rotation is not None:
        raise ConfigError(f"{asked}: the parent's vectors are turned already; leave it out")
    if calibration.rotation_WW is None:
        raise ConfigError(f"{asked}: {where} holds no rotation; make it anew with jobs.calibrate")
    width = len(calibration.rotation_WW)
    if parent.dim != width:
        raise ConfigError(f"{asked}: the parent's vectors have {parent.dim} of {width} components; give a table of whole ones")
    if parent.exit == "native" and parent.depth < calibration.full_depth:
        raise ConfigError(
            f"{asked}: the axes are the full model's, and the parent's vectors those of depth {parent.depth} with a native exit"
        )
    return calibration.rotation_WW


def find_ranges(calibration: Calibration, spec: EmbeddingSpec, where: str) -> Ranges:
    """Find the ranges of vectors of this spec."""
    ranges = calibration.ranges.get(RangeKey.of(spec))
    if ranges is None:
        raise ConfigError(f"{where}: has no ranges of int8 for depth {spec.depth}, {spec.exit} exit, dim {spec.dim}; fit them first")
    return ranges
