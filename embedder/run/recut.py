"""A table's stored vectors → another table that follows it: rotated, at a smaller dim, or quantized. No encoder runs.

As in core/plan.py, the work is a set difference: each part of the parent has one part here, whose name is derived from it.
"""

import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa

from embedder.config.embed import EmbedConfig
from embedder.config.output import CutTableConfig, TableConfig
from embedder.config.section import Section
from embedder.core.columns import PartNames
from embedder.core.errors import ConfigError
from embedder.core.problems import Problems
from embedder.core.redaction import mask_secrets
from embedder.core.rotation import keep_rotation, read_rotation
from embedder.core.schema import VECTORS
from embedder.core.spec import EmbeddingSpec, digest
from embedder.core.storage import Location, Store, map_threads
from embedder.core.units import Part, PartName, Stats
from embedder.observe.environment import describe_environment
from embedder.run.recut_vectors import VectorTransform, plan_cut
from embedder.table.delta import Change, TableState, commit_table, read_table
from embedder.table.log_files import read_checksums
from embedder.table.parts import (
    check_bytes,
    check_stored,
    encode_batches,
    footer_of,
    list_parts,
    part_file,
    quarantine_file,
    read_batches,
    read_footer,
    read_part,
)
from embedder.table.quarantine import sync_quarantine
from embedder.table.vectors import column_codes

NUM_THREADS = 8
"""Parts at a time: they wait for storage and compression, both outside of Python's lock."""


class RecutConfig(Section):
    """Make the table at output.uri hold the rows of parent.uri, with their vectors cut or quantized. No encoder runs."""

    parent: TableConfig
    output: CutTableConfig


@dataclass(frozen=True, slots=True)
class Recut:
    """Figures of a recut."""

    uri: str
    started: str
    parent_version: int
    version: int | None
    """Published version; None if there was nothing to do."""
    parts_added: int
    parts_kept: int
    parts_removed: int
    documents_reused: int
    """Documents of the parent, quarantined ones included."""
    rows: int
    bytes_added: int
    seconds: float

    def text(self) -> str:
        """Return the figures in one line."""
        if self.version is None:
            return f"nothing to do: {self.uri} matches version {self.parent_version} of its parent ({self.rows:,} rows)"
        parts = f"{self.parts_added:,} parts, {self.parts_kept:,} kept, {self.parts_removed:,} removed"
        rows = f"{self.rows:,} rows of the parent's version {self.parent_version}"
        return f"{self.uri}, version {self.version}: {rows}, {self.bytes_added / 1e6:,.1f} MB added in {parts}"


def run_recut(config: RecutConfig) -> Recut:
    """Make the table match the newest version of its parent, in one commit."""
    output, started, clock = config.output, datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    parent = read_parent(config.parent)
    cut, table = check_cut(config, parent.spec)
    schema = parent.schema.set(parent.schema.get_field_index("embedding"), pa.field("embedding", VECTORS[cut.spec.quantization]))
    replaces = table is not None and not (table.spec.space_id == cut.spec.space_id and table.schema.equals(schema))
    wanted = {replace(name, version=digest("recut", name.version, cut.spec.space_id)): name for name in parent.parts}
    tasks = {(name.key, name.version) for name in wanted}
    old = table.parts if table and not replaces else PartNames.of(())
    have = {(name.key, name.version) for name in old}
    # by task, not by part: either table may have been compacted since
    missing = [name for name in wanted if (name.key, name.version) not in have]
    remove = tuple(str(name) for name in old if (name.key, name.version) not in tasks)
    folders = config.parent.location, output.location
    if table and not replaces:
        check_stored(table.sizes, list_parts(output.location), output.uri)
    output.location.open().check_writable()
    rotation_WW = cut.rotation_WW if cut.rotation_WW is not None else read_rotation(parent.spec, config.parent.location)
    if rotation_WW is not None:
        keep_rotation(rotation_WW, output.location)
    checksums = read_checksums(config.parent.location) if missing else {}

    def make(name: PartName) -> Part:
        origin = str(wanted[name])
        check_bytes(part_file(config.parent.location, origin), checksums.get(origin))
        return recut_part(origin, str(name), cut, schema, folders)

    add = map_threads(make, missing, NUM_THREADS)
    done = Recut(
        uri=output.uri,
        started=started,
        parent_version=parent.version,
        version=None,
        parts_added=len(add),
        parts_kept=len(old) - len(remove),
        parts_removed=len(table.rows) if table and replaces else len(remove),
        documents_reused=parent.parts.num_documents,
        rows=sum(parent.rows.values()),
        bytes_added=sum(part.size_bytes for part in add),
        seconds=time.perf_counter() - clock,
    )
    if add or remove or table is None or replaces or not is_made_from(table, config):
        change = Change(tuple(add), remove, schema, record_of(cut, parent, config, done), replaces)
        done = replace(done, version=commit_table(output.location, change, table))
    sync_quarantine(output.location)
    return done


def check_cut(config: RecutConfig, parent: EmbeddingSpec, where: str = "output") -> tuple[VectorTransform, TableState | None]:
    """Plan a cut and read its table; refuse to overwrite another table. `where` is the settings' section."""
    output = config.output
    if place_of(output) == place_of(config.parent):
        raise ConfigError(f"{where}.uri={output.uri!r} is the parent itself; choose another folder")
    cut, table = plan_cut(parent, output, where), read_table(output.location)
    if table is None or output.replace:
        return cut, table
    problem = None
    if table.spec.space_id != cut.spec.space_id:
        problem = f"the table holds another space ({'; '.join(table.spec.differences(cut.spec))})"
    elif not is_made_from(table, config):
        origin = f"is cut from {table.info['parent']['uri']!r}, not" if "parent" in table.info else "was embedded, not cut"
        problem = f"the table there {origin} from {config.parent.uri!r}"
    if problem:
        advice = f"choose another {where}.uri, or swap all of it with --output.replace true"
        raise ConfigError(f"{where}.uri={output.uri!r}: {problem}; {advice}")
    return cut, table


def is_made_from(table: TableState, config: RecutConfig) -> bool:
    """Return whether a table was cut from this parent, however the parent's uri was written then."""
    origin, options = table.info.get("parent"), config.parent.storage_options
    return origin is not None and Store(origin["uri"], options).place == place_of(config.parent)


def place_of(table: TableConfig | CutTableConfig) -> str:
    """Return a table's one name, however its uri is written."""
    return table.location.open().place


def check_cuts(config: EmbedConfig, spec: EmbeddingSpec) -> None:
    """Refuse cuts that cannot be made from the vectors of a run that is about to start; ConfigError holds every problem found."""
    problems = Problems()
    places: set[str] = set()

    def check(cut: RecutConfig, where: str) -> None:
        if spec.quantization != "none":
            raise ConfigError(f"{where}: cannot be made from {spec.quantization} codes; set embedding.quantization to none")
        if place_of(cut.output) in places:
            raise ConfigError(f"{where}.uri={cut.output.uri!r} is that of another cut; choose another folder")
        check_cut(cut, spec, where)
        places.add(place_of(cut.output))

    for number, each in enumerate(list_cuts(config)):
        problems.check(partial(check, each, f"output.cuts[{number}]"))
    problems.raise_all()


def list_cuts(config: EmbedConfig) -> list[RecutConfig]:
    """Return the recut of each of a run's cuts; if the run replaces its table, they are replaced too."""
    output = config.output
    parent = TableConfig(uri=output.uri, storage_options=output.storage_options)
    cuts = (each.model_copy(update={"replace": each.replace or output.replace}) for each in output.cuts)
    return [RecutConfig(parent=parent, output=each) for each in cuts]


def run_cuts(config: EmbedConfig) -> list[Recut]:
    """Make the cuts of a run's table match it."""
    return [run_recut(each) for each in list_cuts(config)]


def read_parent(parent: TableConfig) -> TableState:
    """Read the parent; ConfigError if there is none, or one without float vectors."""
    state = read_table(parent.location)
    if state is None:
        raise ConfigError(f"parent.uri={parent.uri!r}: no table there; make one with jobs.embed")
    if state.spec.quantization != "none":
        raise ConfigError(
            f"parent.uri={parent.uri!r}: holds {state.spec.quantization} codes, from which no other vectors can be made; "
            "give a table with quantization none"
        )
    return state


def recut_part(parent_name: str, name: str, cut: VectorTransform, schema: pa.Schema, folders: tuple[Location, Location]) -> Part:
    """Write one part, its quarantine file first, unless it is already on storage."""
    source, target = folders
    if part_file(target, name).info() is None:
        stats = Stats(**read_footer(part_file(source, parent_name))[1]["stats"])
        if stats.quarantined:
            with quarantine_file(source, parent_name).open_input() as file:
                quarantine_file(target, name).write_once(file.read())
        tables = cut_tables(part_file(source, parent_name), cut, schema)
        part_file(target, name).write_once(encode_batches(tables, schema, {**footer_of(cut.spec, stats, cut.ranges), "name": name}))
    return read_part(name, target)


def cut_tables(part: Store, cut: VectorTransform, schema: pa.Schema) -> Iterator[pa.Table]:
    """Stream a part's rows with their new vectors."""
    place = schema.get_field_index("embedding")
    for table in read_batches(part):
        yield table.set_column(place, schema.field(place), cut.apply(column_codes(table["embedding"]))).cast(schema)


def record_of(cut: VectorTransform, parent: TableState, config: RecutConfig, done: Recut) -> dict[str, object]:
    """Return the run record: the spec, the parent, and the figures that a run's record has."""
    figures = ("started", "parts_added", "parts_kept", "parts_removed", "documents_reused", "rows", "bytes_added", "seconds")
    return {
        "run_id": uuid.uuid4().hex[:12],
        "space_id": cut.spec.space_id,
        "spec": cut.spec.model_dump(),
        "ranges": cut.ranges.record() if cut.ranges else None,
        "bucket_bits": parent.info["bucket_bits"],
        "probe": None,
        "parent": {"uri": place_of(config.parent), "version": parent.version},
        "stats": asdict(Stats()),  # nothing was read or embedded
        **{name: getattr(done, name) for name in figures},
        "config": mask_secrets(config.model_dump(mode="json")),
        "environment": describe_environment(),
    }
