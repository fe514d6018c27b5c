"""Report progress as Ray metrics."""

import string
from collections import defaultdict
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from ray.util.metrics import Counter, Gauge

from embedder.observe.metrics import METRICS, RUN_LABELS, Sample


class Reporter:
    """Hands a run's figures to Ray, whose nodes show them to Prometheus; counters are told by how much they rose."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        kinds = {"counter": Counter, "gauge": Gauge}
        # Ray takes ASCII only, and an address may hold more
        self._labels = {name: quote(value, safe=string.printable) for name, value in labels.items()}
        self._metrics = {metric.name: kinds[metric.kind](metric.name, metric.meaning, (*RUN_LABELS, *metric.labels)) for metric in METRICS}
        self._told: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def report(self, samples: Iterable[Sample]) -> None:
        """Tell the newest values."""
        for sample in samples:
            metric, labels = self._metrics[sample.name], {**self._labels, **sample.labels}
            if isinstance(metric, Gauge):
                metric.set(sample.value, labels)
                continue
            key = (sample.name, *sample.labels.values())
            if sample.value > self._told[key]:
                metric.inc(sample.value - self._told[key], labels)
                self._told[key] = sample.value
