"""Damages a table by a seed, file by file, and judges each damage by all that search, diff, load and a check read."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake.exceptions import DeltaError

from embedder.core.errors import EmbedderError, StorageError
from embedder.core.rotation import digest_array, keep_rotation, read_rotation
from embedder.core.storage import Location
from embedder.search.exact import open_table
from embedder.stores.load import read_version
from embedder.stores.rows import read_parts
from embedder.table.check import check_table, mend_log, repair_table
from embedder.table.compact import compact_table
from embedder.table.diff import name_rows, read_changes
from embedder.table.log_checkpoint import write_checkpoint
from embedder.table.quarantine import read_quarantined
from tests.table.conftest import CORPUS
from tests.tables import DIM, SPEC, Corpus, MadeTable, vector_of

EDITED: Corpus = {**CORPUS, "q": [("b", "eight nine", "x")], "large-3": [("c", "ten eleven", "y"), ("d", "twelve", None)]}
LATEST: Corpus = {**EDITED, "large-2": [("a", "five", "x"), ("b", "thirteen", "z"), ("c", " ", "x")]}
ROTATION_WW = np.eye(DIM, dtype=np.float32)[::-1].copy()
Outcome = str
"""harmless: nothing that is read changed; mended: found, and the next run restored everything; refused: found, and it needs a backup;
redone: not found, but the next run restored everything; silent: neither found nor restored."""


def make_table(folder: Path) -> MadeTable:
    """Make a table of four versions with a rotation, quarantined records, merged parts and a checkpoint in the middle of its log."""
    table = MadeTable(str(folder / "table"), spec=SPEC.model_copy(update={"rotation": digest_array(ROTATION_WW)}))
    keep_rotation(ROTATION_WW, table.location)
    table.follow(CORPUS)
    compact_table(table.location, 10_000_000)
    table.follow(EDITED)
    write_checkpoint(table.location)
    table.follow(LATEST)
    return table


def read_all(table: MadeTable) -> dict[str, Any]:
    """Read the newest version in every way; an error of ours stands for what could not be read."""
    reads: dict[str, Callable[[], Any]] = {
        "search": lambda: search(table.location),
        "load": lambda: load_rows(table.location),
        "diff": lambda: sorted(map(str, name_rows(read_changes(table.location, 0, None)))),
        "quarantine": lambda: read_rejects(table),
        "rotation": lambda: (read_rotation(table.spec, table.location) @ np.ones(DIM)).tolist(),
    }
    return {name: attempt(read) for name, read in reads.items()}


def attempt(read: Callable[[], Any]) -> Any:
    """Return the result, or the error if it is one of ours; any other is a traceback to the user."""
    try:
        return read()
    except EmbedderError as error:
        return error


def search(location: Location) -> list[tuple[float, dict[str, Any]]]:
    """Return the rows nearest to a few queries."""
    target = open_table(location)
    return [(round(hit.score, 5), hit.row) for word in ("five", "ten", "two") for hit in target.find(vector_of(word), 4, None)]


def load_rows(location: Location) -> list[str]:
    """Read every row, as a first load of a store does."""
    version = read_version(location)
    return sorted(str(row) for rows in read_parts(location, list(version.rows), version.schema) for row in rows.to_pylist())


def read_rejects(table: MadeTable) -> list[dict[str, Any]]:
    """Read all quarantined records, as a reader of the Delta table does."""
    read_quarantined(table.location)
    try:
        return table.quarantine()
    except (OSError, pa.ArrowException, DeltaError) as error:
        raise StorageError("deltalake refuses the quarantine") from error


@dataclass
class Tally:
    """Outcomes by damage and kind of file, and the damages that ended badly."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    """Damages that a check finds, but that a read served without an error before."""

    @property
    def totals(self) -> Mapping[str, int]:
        """Number of damages by outcome."""
        totals = Counter[str]()
        for (_, outcome), count in self.outcomes.items():
            totals[outcome] += count
        return totals


def draw_damages(folder: Path, draw: random.Random) -> Iterator[tuple[str, Path, Callable[[Path], None]]]:
    """Yield, for every file of a table, a flip of one bit, a truncation, other bytes of equal size, a deletion and a swap."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        size = path.stat().st_size
        bit, length = draw.randrange(8 * size), draw.randrange(size)
        others = [other for other in files if other.parent == path.parent and other.suffix == path.suffix and other != path]
        at, noise = max(0, length - 64), draw.randbytes(min(64, size))
        yield f"flip bit {bit}", path, partial(flip, bit=bit)
        yield f"cut to {length}", path, partial(cut, length=length)
        yield f"noise at {at}", path, partial(overwrite, at=at, noise=noise)
        yield "delete", path, Path.unlink
        if others:
            other = draw.choice(others).name
            yield f"swap with {other}", path, partial(swap, name=other)


def flip(file: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def overwrite(file: Path, at: int, noise: bytes) -> None:
    """Replace bytes in the middle of a file; its size stays."""
    data = file.read_bytes()
    file.write_bytes(data[:at] + noise[: len(data) - at] + data[at + len(noise) :])


def cut(file: Path, length: int) -> None:
    """Keep the first bytes of a file."""
    file.write_bytes(file.read_bytes()[:length])


def swap(file: Path, name: str) -> None:
    """Exchange a file with another of its folder."""
    other = file.with_name(name)
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second)
    other.write_bytes(first)


def judge(table: MadeTable, whole: Mapping[str, Any]) -> tuple[Outcome, list[str]]:
    """Return the outcome of the damage done to a table, and the reads that served it without an error."""
    found = read_all(table)
    served = [name for name, value in found.items() if not isinstance(value, EmbedderError) and value != whole[name]]
    checked = attempt(lambda: check_table(table.location, deep=True))
    is_found = isinstance(checked, EmbedderError) or bool(checked.faults)
    unreadable = [name for name, value in found.items() if isinstance(value, EmbedderError)]
    if not is_found and not served and set(unreadable) <= {"diff"}:  # diff also reads version 0
        return "harmless", []
    if is_found:
        attempt(lambda: repair(table))
    after = attempt(lambda: keep_rotation(ROTATION_WW, table.location) or table.follow(LATEST))
    again = attempt(lambda: check_table(table.location, deep=True))
    reads = read_all(table)
    restored = all(not isinstance(reads[name], EmbedderError) and reads[name] == whole[name] for name in whole if name != "diff")
    if restored and not isinstance(after, EmbedderError) and not isinstance(again, EmbedderError) and not again.faults:
        return ("mended" if is_found else "redone"), served
    return ("refused" if is_found else "silent"), served


def repair(table: MadeTable) -> None:
    """Do as jobs.maintain --check --deep --repair."""
    mend_log(table.location)
    checked = check_table(table.location, deep=True)
    repair_table(table.location, checked)


def damage_rounds(folder: Path, seed: int, rounds: int, share: float = 1.0) -> Tally:
    """Damage copies of one table; `share` of all damages of a round are drawn."""
    table = make_table(folder / "whole")
    whole, draw, tally = read_all(table), random.Random(seed), Tally()
    assert not any(isinstance(value, EmbedderError) for value in whole.values()), whole
    assert not check_table(table.location, deep=True).faults
    top = Path(table.uri)
    for _ in range(rounds):
        for what, path, damage in draw_damages(top, draw):
            if draw.random() >= share:
                continue
            copy = folder / "copy"
            shutil.copytree(top, copy)
            place = path.relative_to(top)
            damage(copy / place)
            outcome, served = judge(MadeTable(str(copy), spec=table.spec), whole)
            kind = what.split()[0]
            tally.outcomes[kind, outcome] += 1
            if outcome == "silent":
                tally.silent.append(f"{place}: {what}")
            if served:
                tally.served.append(f"{place}: {what}: {', '.join(served)}: {outcome}")
            shutil.rmtree(copy)
    return tally
