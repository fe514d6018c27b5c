"""Progress of a run: sums, estimates and cost, shown as a bar in a terminal or as log lines."""

import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from embedder.core.columns import Tasks
from embedder.core.printable import printable
from embedder.core.units import Part, PartName, Stats
from embedder.observe.logs import is_json, log_fields

LOG_SECONDS = 10.0
NO_REASONS: Mapping[str, int] = MappingProxyType({})

logger = logging.getLogger("embedder")


class Meter:
    """Sums finished units and estimates the remaining work from bytes: document counts are unknown until a shard is read."""

    def __init__(self, tasks: Tasks, usd_per_hour: float | None, actors: int = 1, usd_per_million_tokens: float | None = None) -> None:
        self.total = Stats()
        self.reasons: Counter[str] = Counter()
        """Quarantined records by reason."""
        self.units, self.failed, self.retried, self.bytes_written = 0, 0, 0, 0
        self._actors = actors
        self.started = time.monotonic()
        self.usd_per_hour, self.usd_per_million_tokens = usd_per_hour, usd_per_million_tokens
        self.tokens_embedded = 0
        """Tokens embedded in this run, which an API bills; parts that were on storage already add none."""
        self._first_landing: tuple[float, Stats] | None = None
        self._last_landing = self.started
        self._left: dict[str, int] = dict(zip(tasks.keys.to_pylist(), tasks.sizes.tolist(), strict=True))
        self._source_bytes = max(1, tasks.size_bytes)
        self._finished_bytes = 0
        self._finished_text = 0
        self._open_text: defaultdict[str, int] = defaultdict(int)
        self._rows: defaultdict[str, int] = defaultdict(int)
        """Rows of finished units, by unfinished task: units, and slices of a shard, finish in any order."""
        self._ends: dict[str, int] = {}
        self._guess = 1.0 - 0.65 * tasks.all_shards.compressed_bytes / self._source_bytes
        """Source bytes per byte of text, until a shard is finished: compressed text is about a third."""

    def land(self, part: Part, reasons: Mapping[str, int] = NO_REASONS, attempt: int = 1, tokens_embedded: int = 0) -> None:
        """Count a finished unit and its earlier attempts."""
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
        """Count a task that could not be read to its end."""
        self.failed += 1
        self._finish(key)

    def _finish(self, key: str) -> None:
        """Move a task's bytes from open to finished."""
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
        """Tokens a second between the first finished unit and the last: excludes the start of Ray and the models."""
        return self._steady_rate("tokens")

    def _steady_rate(self, name: str) -> float | None:
        """Return a statistic's growth per second between the first finished unit and the last, None before there are two."""
        if self._first_landing is None or self._last_landing <= self._first_landing[0]:
            return None
        since, before = self._first_landing
        return float(getattr(self.total, name) - getattr(before, name)) / (self._last_landing - since)

    @property
    def encoder_busy_share(self) -> float | None:
        """Share of the actors' time spent encoding, between the first finished unit and the last."""
        rate = self._steady_rate("encode_seconds")
        return None if rate is None else min(1.0, rate / self._actors)

    @property
    def share(self) -> float:
        """Estimated share of finished work, 0 to 1."""
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
        """Return counts, rates, cost and remaining time as one line."""
        seconds = max(self.seconds, 1e-9)
        total = self.total
        words = [f"{total.documents:,} documents", f"{total.chunks / seconds:,.0f} chunks/s", f"{total.tokens / seconds:,.0f} tokens/s"]
        if self.cost_usd is not None:
            words.append(f"${self.cost_usd:,.2f}")
        if self.share > 0.01:
            words.append(f"{timedelta(seconds=int(seconds * (1 - self.share) / self.share))} left")
        return " · ".join(words)


class Display:
    """Shows progress on stderr while the block runs: a bar in a terminal, else a log line for each new step and every ten seconds."""

    def __init__(self) -> None:
        self._step, self._next_line = "", time.monotonic() + LOG_SECONDS
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not is_json():
            columns = (BarColumn(30), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("starting", total=None)

    def __enter__(self) -> "Display":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def refresh(self, meter: Meter) -> None:
        """Show a meter's figures."""
        share, total = meter.share, meter.total
        figures = {"share": round(share, 4), "documents": total.documents, "chunks": total.chunks, "tokens": total.tokens}
        self._show("", f"{share:4.0%} · {meter.line()}", share, 1.0, **figures)

    def report(self, step: str, done: int, total: int) -> None:
        """Show a step, with its progress if it has a length."""
        self._show(step, f"{step}: {done:,} of {total:,} texts" if total else step, done, total or None)

    def _show(self, step: str, line: str, done: float, total: float | None, **figures: float) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=line, completed=done, total=total)
        elif step != self._step or time.monotonic() >= self._next_line:
            self._step, self._next_line = step, time.monotonic() + LOG_SECONDS
            logger.info("%s", line, extra=log_fields(**figures))


def align(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and values as two columns, a line each."""
    listed = [(printable(name), printable(value)) for name, value in rows]
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in listed)
