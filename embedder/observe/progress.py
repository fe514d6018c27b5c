"""What a person sees while a run goes on: a bar in a terminal, a line every ten seconds in a log."""

import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from embedder.core.units import Part, PartName, Stats, Task
from embedder.observe.logs import is_json, log_fields

LOG_SECONDS = 10.0
NO_REASONS: Mapping[str, int] = MappingProxyType({})
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".parquet")

logger = logging.getLogger("embedder")


class Meter:
    """Sums what has landed and estimates what is left, from bytes: document counts are unknown until a shard is read."""

    def __init__(
        self, tasks: Sequence[Task], usd_per_hour: float | None, actors: int = 1, usd_per_million_tokens: float | None = None
    ) -> None:
        self.total = Stats()
        self.reasons: Counter[str] = Counter()
        """Quarantined records by reason."""
        self.units, self.failed, self.retried, self.bytes_written = 0, 0, 0, 0
        self._actors = actors
        self.started = time.monotonic()
        self.usd_per_hour, self.usd_per_million_tokens = usd_per_hour, usd_per_million_tokens
        self.tokens_embedded = 0
        """In this run: what an API bills; none of a part that was on storage already."""
        self._first_landing: tuple[float, Stats] | None = None
        self._last_landing = self.started
        self._left: defaultdict[str, int] = defaultdict(int)
        for task in tasks:
            self._left[task.key] = sum(shard.size_bytes for shard in task.shards)
        self._source_bytes = max(1, sum(self._left.values()))
        self._finished_bytes = 0
        self._finished_text = 0
        self._open_text: defaultdict[str, int] = defaultdict(int)
        self._rows: defaultdict[str, int] = defaultdict(int)
        """Landed, of tasks that have not ended: units, and slices of a shard, land in no order."""
        self._ends: dict[str, int] = {}
        compressed = sum(shard.size_bytes for task in tasks for shard in task.shards if shard.uri.endswith(_COMPRESSED))
        self._guess = 1.0 - 0.65 * compressed / self._source_bytes
        """Source bytes a byte of text, until a shard has ended: compressed text is about a third."""

    def land(self, part: Part, reasons: Mapping[str, int] = NO_REASONS, attempt: int = 1, tokens_embedded: int = 0) -> None:
        """Count one unit, and the attempts at it before this one."""
        self.tokens_embedded += tokens_embedded
        name = PartName.parse(part.name)
        assert name is not None
        self.total += part.stats
        self.reasons.update(reasons)
        self.units += 1
        self.retried += max(0, attempt - 1)
        self.bytes_written += part.size_bytes
        self._first_landing = self._first_landing or (time.monotonic(), self.total)
        self._last_landing = time.monotonic()
        if name.key not in self._left:  # a slice of a shard whose other slice failed
            self._finished_text += part.stats.text_bytes
            return
        self._open_text[name.key] += part.stats.text_bytes
        self._rows[name.key] += name.stop_row - name.first_row
        if name.last:
            self._ends[name.key] = name.stop_row
        if self._rows[name.key] == self._ends.get(name.key):
            self._finish(name.key)

    def fail(self, key: str) -> None:
        """Count a task as one that could not be read to its end."""
        self.failed += 1
        self._finish(key)

    def _finish(self, key: str) -> None:
        """Count a task as read to its end, or given up."""
        self._finished_bytes += self._left.pop(key, 0)
        self._finished_text += self._open_text.pop(key, 0)
        self._rows.pop(key, None)
        self._ends.pop(key, None)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def steady_tokens_per_second(self) -> float | None:
        """Tokens a second between the first unit that landed and the last: without the start of Ray and of the models."""
        if self._first_landing is None or self._last_landing <= self._first_landing[0]:
            return None
        since, before = self._first_landing
        return (self.total.tokens - before.tokens) / (self._last_landing - since)

    @property
    def encoder_busy_share(self) -> float | None:
        """Share of the actors' time, between the first unit that landed and the last, that went into encoding."""
        if self._first_landing is None or self._last_landing <= self._first_landing[0]:
            return None
        since, before = self._first_landing
        return min(1.0, (self.total.encode_seconds - before.encode_seconds) / (self._last_landing - since) / self._actors)

    @property
    def share(self) -> float:
        """Estimated share of the work that is done, 0 to 1."""
        ratio = self._finished_bytes / self._finished_text if self._finished_text else self._guess
        inside = sum(min(0.95 * self._left[key], text * ratio) for key, text in self._open_text.items() if key in self._left)
        return min(1.0, (self._finished_bytes + inside) / self._source_bytes)

    @property
    def cost_usd(self) -> float | None:
        """Cost so far, if a price is set."""
        if self.usd_per_million_tokens is not None:
            return self.usd_per_million_tokens * self.tokens_embedded / 1e6
        return self.usd_per_hour * self.seconds / 3600 if self.usd_per_hour is not None else None

    def line(self) -> str:
        """Say it in one line."""
        seconds = max(self.seconds, 1e-9)
        words = [
            f"{self.total.documents:,} documents",
            f"{self.total.chunks / seconds:,.0f} chunks/s",
            f"{self.total.tokens / seconds:,.0f} tokens/s",
        ]
        if self.cost_usd is not None:
            words.append(f"${self.cost_usd:,.2f}")
        if self.share > 0.01:
            words.append(f"{_clock(seconds * (1 - self.share) / self.share)} left")
        return " · ".join(words)


class Display:
    """Shows a meter on stderr while the block runs; redraws where stderr is a terminal, logs where it is not."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._next_line = time.monotonic() + LOG_SECONDS
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not is_json():
            columns = (BarColumn(30), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("starting", total=1.0)

    def __enter__(self) -> "Display":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def refresh(self) -> None:
        """Show the meter's figures, if it is time."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.meter.share, description=self.meter.line())
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LOG_SECONDS
            total = self.meter.total
            figures = log_fields(share=round(self.meter.share, 4), documents=total.documents, chunks=total.chunks, tokens=total.tokens)
            logger.info("%3.0f%% · %s", 100 * self.meter.share, self.meter.line(), extra=figures)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def align(rows: Iterable[tuple[str, str]]) -> str:
    """Lay out names and values in two columns."""
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in listed)


LOG_SECONDS = 10.0


logger = logging.getLogger("embedder")


class Steps:
    """Shows steps on stderr while the block runs."""

    def __init__(self) -> None:
        self._name = ""
        self._next_line = 0.0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (BarColumn(30), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("starting", total=None)

    def __enter__(self) -> "Steps":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def report(self, name: str, done: int, total: int) -> None:
        """Show a step, and how far it is where it has a length."""
        line = f"{name}: {done:,} of {total:,} texts" if total else name
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=line, completed=done, total=total or None)
        elif name != self._name or time.monotonic() >= self._next_line:
            self._name, self._next_line = name, time.monotonic() + LOG_SECONDS
            logger.info("%s", line)
