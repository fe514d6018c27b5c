"""Drift of a calibration: a sample of the chunks that a run embeds behind a calibrated exit is compared with the full model's vectors.

Before anything is published, gate.min_fidelity refuses a run whose sample is too far from the full model. Without it, drift is a warning.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from embedder.core.errors import CommitError
from embedder.core.fidelity import CALIBRATE_AGAIN, SAMPLE_CHUNKS, Measured, describe_fidelity, measure_sample
from embedder.core.quantization import Floats
from embedder.core.retry import one_line
from embedder.core.units import Part
from embedder.observe.metrics import Sample
from embedder.pipeline.chunk_sample import SAMPLE, merge_samples
from embedder.pipeline.full_model import beside_actors, encode_full
from embedder.pipeline.rows import from_ipc, to_ipc
from embedder.run.open_pipeline import open_pipeline
from embedder.run.prepare import RunPlan
from embedder.table.kept_samples import keep_sample, read_samples
from embedder.table.vectors import column_codes

logger = logging.getLogger("embedder")


class DriftWatch:
    """Collects the sample of one run, and measures it. Without a calibrated exit the sample stays empty."""

    def __init__(self, run_plan: RunPlan, run_id: str) -> None:
        self.run_plan, self.run_id, self.folder = run_plan, run_id, run_plan.config.output.location
        gate, calibration = run_plan.config.gate, run_plan.model.calibration
        self.least = gate.min_fidelity if gate else None
        self.sample = SAMPLE.append(pa.field("part", pa.string())).empty_table()
        self.expected = None
        if run_plan.spec.exit == "calibrated":
            assert calibration is not None
            self.expected = calibration.expect_fidelity(run_plan.spec)
            self._adopt_samples()
        self._is_checked = False

    def _adopt_samples(self) -> None:
        """Take up the samples of refused runs, as far as this run adopts the parts that they are of."""
        plan = self.run_plan.plan
        adopted = {str(name) for name in plan.adopt}.union(*plan.done.values())
        for sample in read_samples(self.folder) if adopted else []:
            self.sample = merge_samples(self.sample, sample.filter(pa.array([name in adopted for name in sample["part"].to_pylist()])))

    def land(self, part: str, candidates: bytes) -> None:
        """Take the candidates of a unit."""
        if candidates:
            found = from_ipc(candidates)
            self.sample = merge_samples(self.sample, found.append_column("part", pa.array([part] * found.num_rows)))

    def lets_pass(self, add: Sequence[Part], published: str) -> bool:
        """Return whether parts may be published before the run's end, which takes a gate a measured sample; CommitError below the gate.

        The first full sample decides, on CPUs beside the actors.
        """
        if self.least is None or self._is_checked:
            return True
        if not self.sample.num_rows:
            return not any(part.stats.chunks for part in add)
        try:
            measured = self._measure(beside=True)
        except Exception as error:  # noqa: BLE001 - whatever fails here, the run goes on and is measured at its end
            logger.warning("gate.min_fidelity: not measured beside the actors (%s); nothing is published until the end", one_line(error))
            return False
        self._refuse(measured, published)
        self._is_checked = measured.chunks == SAMPLE_CHUNKS
        return True

    def measure(self, add: Sequence[Part], published: str) -> Measured | None:
        """Return the figures of the run before its last commit, and warn of drift; None if there are none. CommitError below the gate."""
        if not self.sample.num_rows:
            if self.run_plan.spec.exit == "calibrated" and any(part.stats.chunks for part in add):
                why = f"a run that died embedded the {len(add)} parts to publish and kept no sample of them"
                self._miss(why, "delete them to embed them again", published)
            return None
        try:
            measured = self._measure()
        except Exception as error:  # noqa: BLE001 - a run of hours does not end by its measurement
            self._miss(f"the full model did not run ({one_line(error)})", "give it more memory", published, error)
            return None
        self._refuse(measured, published)
        return measured

    def _miss(self, why: str, remedy: str, published: str, cause: Exception | None = None) -> None:
        """Warn that there are no figures; CommitError if a gate needs them."""
        if self.least is not None:
            raise CommitError(
                f"gate.min_fidelity={self.least:g}: not measured, {why}; {published}; {remedy}, or leave the gate out for this run"
            ) from cause
        logger.warning("fidelity of the calibrated exit: not measured, %s", why)

    def _refuse(self, measured: Measured, published: str) -> None:
        if self.least is not None and measured.cosine < self.least:
            raise CommitError(
                f"gate.min_fidelity={self.least:g}: the sample of this run has {describe(measured)}; {published}; {CALIBRATE_AGAIN}; "
                "or lower the gate: finished parts are kept, and the next run adopts them"
            )

    def _measure(self, beside: bool = False) -> Measured:
        """Run the full model over the sample, where an encoder actor ran or beside the actors."""
        spec, started = self.run_plan.spec, time.monotonic()
        logger.info("running the full model over a sample of %d chunks", self.sample.num_rows)
        with ExitStack() as stack:
            pipeline = open_pipeline(self.run_plan, self.run_id, stack)
            pool = beside_actors(pipeline.pool) if beside else pipeline.pool
            [full_NW] = pipeline.run_steps(encode_full, (spec, to_ipc(self.sample), pool), pool)
            measured = measure_sample(column_codes(self.sample["vector"]), self._to_queries(full_NW), full_NW, self.expected)
            figures = {"embedder_fidelity_cosine": measured.cosine, "embedder_fidelity_overlap": measured.overlap}
            pipeline.report(Sample(name, value) for name, value in figures.items() if value is not None)
        level, advice = (logging.WARNING, f"; {CALIBRATE_AGAIN}") if measured.drifted else (logging.INFO, "")
        seconds = time.monotonic() - started
        logger.log(level, "fidelity of the calibrated exit: %s; measured in %.1f s%s", describe(measured), seconds, advice)
        return measured

    def _to_queries(self, full_NW: Floats) -> Floats:
        """Rotate and truncate vectors of the full model as queries are."""
        rotation_WW = self.run_plan.model.rotation_WW
        turned_NW = full_NW if rotation_WW is None else full_NW @ rotation_WW
        return np.ascontiguousarray(turned_NW[:, : self.run_plan.spec.dim])

    @contextmanager
    def kept_if_refused(self) -> Iterator[None]:
        """Keep the sample if the block refuses to publish: a run that adopts the parts measures them by it."""
        try:
            yield
        except CommitError:
            if self.sample.num_rows:
                keep_sample(to_ipc(self.sample), self.run_id, self.folder)
            raise


def describe(measured: Measured) -> str:
    """Return the figures in words."""
    return describe_fidelity(asdict(measured))
