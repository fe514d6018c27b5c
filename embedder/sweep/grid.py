"""Settings to try: which depths, dims, precisions, exits and query sides of which model; what cannot be tried is refused at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from embedder.core.spec import Exit
from embedder.sweep.candidates import CalibratedExit, Candidate, Floats, Side, Transformer
from embedder.sweep.config import GridConfig, Precision, QuerySide
from embedder.sweep.retrieval import BITS

NUM_DEPTHS = 6
NUM_DIMS = 5
LEAST_DIM = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the study."""

    model: str
    depth: int
    """Layers run; 0 for a model behind an API."""
    dim: int
    precision: Precision
    exit: Exit
    query_side: QuerySide
    rotated: bool = False
    """Whether vectors are turned onto their principal axes before the cut."""
    float8: bool = False
    """Whether the layers that documents run through multiply in float8."""

    @property
    def bytes_per_vector(self) -> float:
        """What one stored vector takes."""
        return self.dim * BITS[self.precision] / 8

    def label(self) -> str:
        """Name it in a line."""
        layers = f"depth {self.depth} × " if self.depth else ""
        exit_ = (" calibrated" if self.exit == "calibrated" else "") + (" rotated" if self.rotated else "")
        side = ", full queries" if self.query_side == "full" else ""
        float8 = ", layers in float8" if self.float8 else ""
        return f"{layers}dim {self.dim} {self.precision.replace('_', ', ')}{exit_}{float8}{side}"


@dataclass(frozen=True, slots=True)
class View:
    """One model at one depth by one exit: its vectors of full width, from which every dim and precision is cut."""

    candidate: Candidate
    depth: int
    dims: tuple[int, ...]
    query_sides: tuple[QuerySide, ...]
    exit: CalibratedExit | None = None
    rotation_WW: Floats | None = None  # noqa: N815

    @property
    def is_float8(self) -> bool:
        """Whether its documents run through layers in float8."""
        return isinstance(self.candidate, Transformer) and self.candidate.spec.float8

    @property
    def asking(self) -> "View":
        """What its queries are embedded by: the same layers, never in float8."""
        return replace(self, candidate=self.candidate.asking) if isinstance(self.candidate, Transformer) else self

    def widths(self, texts: Sequence[str], side: Side) -> Floats:
        """Give vectors before cut and L2."""
        if self.exit is None:
            return self.turn(self.candidate.widths(texts, side, self.depth))
        assert isinstance(self.candidate, Transformer), "only layers of a model here can be calibrated"
        return self.turn(self.candidate.exit_widths(texts, side, self.exit))

    def turn(self, vectors_NW: Floats) -> Floats:
        """Bring vectors of the full model's space into this view's: turned, or as they are."""
        return vectors_NW if self.rotation_WW is None else vectors_NW @ self.rotation_WW

    def setting(self, dim: int, precision: Precision, query_side: QuerySide) -> Setting:
        """Name one of its rows."""
        exit_: Exit = "calibrated" if self.exit else "native"
        return Setting(self.candidate.name, self.depth, dim, precision, exit_, query_side, self.rotation_WW is not None, self.is_float8)


@dataclass(frozen=True, slots=True)
class Grid:
    """All that is tried. The first view is the model at full depth, which the others are measured by."""

    views: tuple[View, ...]
    precisions: tuple[Precision, ...]

    @property
    def full(self) -> View:
        """The model at full depth."""
        return self.views[0]

    @property
    def reference(self) -> Setting:
        """The full model as it is."""
        return self.full.setting(self.full.candidate.width, "float32", "same")

    def settings(self) -> Iterator[Setting]:
        """List every row."""
        for view in self.views:
            for dim in view.dims:
                for precision in self.precisions:
                    for query_side in view.query_sides:
                        yield view.setting(dim, precision, query_side)


def choose_depths(num_layers: int, wanted: Sequence[int]) -> tuple[int, ...]:
    """Give the depths to try, the full one first."""
    spread = [round(num_layers * number / NUM_DEPTHS) for number in range(1, NUM_DEPTHS + 1)]
    return tuple(sorted({num_layers, *(wanted or (depth for depth in spread if depth))}, reverse=True))


def choose_dims(width: int, wanted: Sequence[int]) -> tuple[int, ...]:
    """Give the dims to try, the full width first."""
    halved = [width >> number for number in range(NUM_DIMS)]
    return tuple(sorted({width, *(wanted or (dim for dim in halved if dim >= LEAST_DIM and dim % 8 == 0))}, reverse=True))


def check_grid(where: str, wanted: GridConfig, num_layers: int, width: int) -> list[str]:
    """Say what the model cannot do."""
    problems = [
        f"{where}.depths: {depth}: the model has {num_layers} layers; choose 1 to {num_layers}"
        for depth in wanted.depths
        if depth > num_layers
    ]
    problems += [f"{where}.dims: {dim}: the model gives {width} components; choose 1 to {width}" for dim in wanted.dims if dim > width]
    if any(precision.startswith("binary") for precision in wanted.precisions):
        dims = choose_dims(width, wanted.dims)
        problems += [
            f"{where}.dims: {dim}: binary packs eight components a byte; choose multiples of 8, or leave binary out of grid.precisions"
            for dim in dims
            if dim % 8
        ]
    return problems


def view_model(
    candidate: Transformer,
    depths: Sequence[int],
    dims: tuple[int, ...],
    grid: GridConfig,
    exits: Mapping[int, CalibratedExit],
    rotation_WW: Floats | None = None,
) -> list[View]:
    """List a model's views, the deepest first: for the full depth both query sides are the same.

    What lies in the full model's space is tried turned as well, if there is a rotation, at the dims that are really cut.
    """
    views, cut_dims = [], tuple(dim for dim in dims if dim < candidate.width)
    for depth in depths:
        is_full = depth == max(depths)
        sides: tuple[QuerySide, ...] = ("same",) if is_full else grid.query_sides
        views.append(View(candidate, depth, dims, sides))
        if depth in exits:
            views.append(View(candidate, depth, dims, grid.query_sides, exits[depth]))
        if rotation_WW is not None and cut_dims and (is_full or depth in exits):
            sides = sides if is_full else grid.query_sides
            views.append(View(candidate, depth, cut_dims, sides, exits.get(depth), rotation_WW))
    return views
