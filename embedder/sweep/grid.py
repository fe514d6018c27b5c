"""The settings to try: depths, dims, precisions, exits and query sides of each model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from embedder.core.quantization import Floats
from embedder.core.spec import Exit
from embedder.sweep.candidates import Candidate, Side, Texts, Transformer
from embedder.sweep.config import GridConfig, Precision, QuerySide
from embedder.sweep.retrieval import BITS

NUM_DEPTHS = 6
NUM_DIMS = 5
LEAST_DIM = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """Identity of a row."""

    model: str
    depth: int
    """Layers run; 0 for a model behind an API."""
    dim: int
    precision: Precision
    exit: Exit
    query_side: QuerySide
    rotated: bool = False
    """Whether vectors are rotated onto their principal axes before the cut."""
    float8: bool = False
    """Whether the layers that documents run through multiply in float8."""
    chunking: str = ""
    """Name of the chunking, '' if there is one only."""

    @property
    def bytes_per_vector(self) -> float:
        """Size of one stored vector."""
        return self.dim * BITS[self.precision] / 8

    @property
    def variant(self) -> str:
        """Return what distinguishes it from other settings of its depth and dim, for a label."""
        flags = {"calibrated": self.exit == "calibrated", "rotated": self.rotated, "layers in float8": self.float8}
        return "".join(f", {name}" for name, is_set in flags.items() if is_set)

    @property
    def label(self) -> str:
        """Return a readable name, without the model."""
        depth = f"depth {self.depth} × " if self.depth else ""
        side = ", full queries" if self.query_side == "full" else ""
        chunking = f", {self.chunking}" if self.chunking else ""
        return f"{depth}dim {self.dim} {self.precision.replace('_', ', ')}{self.variant}{side}{chunking}"


@dataclass(frozen=True, slots=True)
class View:
    """One model at one depth by one exit and chunking: its full-width vectors, from which every dim and precision is cut."""

    candidate: Candidate
    depth: int
    dims: tuple[int, ...]
    query_sides: tuple[QuerySide, ...]
    exit: Exit = "native"
    rotation_WW: Floats | None = None  # noqa: N815
    chunking: str = ""

    @property
    def for_queries(self) -> "View":
        """The view that embeds its queries: the same layers, never in float8."""
        return replace(self, candidate=self.candidate.query_model) if isinstance(self.candidate, Transformer) else self

    def embed(self, texts: Texts, side: Side) -> Floats:
        """Return vectors before cut and L2."""
        if self.exit == "native":
            return self.rotate(self.candidate.embed(texts, side, self.depth))
        assert isinstance(self.candidate, Transformer), "only a local model has calibrated exits"
        return self.rotate(self.candidate.embed_exit(texts, side, self.depth))

    def rotate(self, vectors_NW: Floats) -> Floats:
        """Return vectors of the full model's space rotated as this view's are."""
        return vectors_NW if self.rotation_WW is None else vectors_NW @ self.rotation_WW

    def setting(self, dim: int, precision: Precision, query_side: QuerySide) -> Setting:
        """Return one of its settings."""
        float8 = isinstance(self.candidate, Transformer) and self.candidate.spec.float8
        rotated = self.rotation_WW is not None
        return Setting(self.candidate.name, self.depth, dim, precision, self.exit, query_side, rotated, float8, self.chunking)


@dataclass(frozen=True, slots=True)
class Grid:
    """All views and precisions of one chunking. The first view is the model at full depth, the reference of all others."""

    views: tuple[View, ...]
    precisions: tuple[Precision, ...]

    @property
    def full(self) -> View:
        """The model at full depth."""
        return self.views[0]

    @property
    def reference(self) -> Setting:
        """The full model, uncut and unquantized."""
        return self.full.setting(self.full.candidate.width, "float32", "same")

    def settings(self) -> Iterator[Setting]:
        """Yield every setting."""
        for view in self.views:
            for dim in view.dims:
                for precision in self.precisions:
                    for query_side in view.query_sides:
                        yield view.setting(dim, precision, query_side)


def choose_depths(num_layers: int, wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the depths to try, the full one first."""
    spread = [round(num_layers * number / NUM_DEPTHS) for number in range(1, NUM_DEPTHS + 1)]
    return tuple(sorted({num_layers, *(wanted or filter(None, spread))}, reverse=True))


def choose_dims(width: int, wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the dims to try, the full width first."""
    halved = [width >> number for number in range(NUM_DIMS)]
    return tuple(sorted({width, *(wanted or (dim for dim in halved if dim >= LEAST_DIM and dim % 8 == 0))}, reverse=True))


def view_model(
    candidate: Transformer, depths: Sequence[int], dims: tuple[int, ...], grid: GridConfig, rotation_WW: Floats | None = None
) -> list[View]:
    """Return a model's views, the deepest first. At full depth both query sides are equal.

    Views in the full model's space are also tried rotated, at the dims that are really cut.
    """
    views, cut_dims = [], tuple(dim for dim in dims if dim < candidate.width)
    for depth in depths:
        is_full = depth == max(depths)
        sides: tuple[QuerySide, ...] = ("same",) if is_full else grid.query_sides
        views.append(View(candidate, depth, dims, sides))
        if depth in candidate.exits:
            views.append(View(candidate, depth, dims, grid.query_sides, "calibrated"))
        if rotation_WW is not None and cut_dims and is_full:
            views.append(View(candidate, depth, cut_dims, sides, "native", rotation_WW))
        if rotation_WW is not None and cut_dims and depth in candidate.exits:
            views.append(View(candidate, depth, cut_dims, grid.query_sides, "calibrated", rotation_WW))
    return views
