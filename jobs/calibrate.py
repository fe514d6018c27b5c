"""Fit exits, principal axes and int8 ranges of a model on a sample of a corpus, so that shallow depths and small dims become usable.

python -m jobs.calibrate CONFIG [--section.key VALUE …] [--print-config]
"""

from collections.abc import Sequence

from embedder.calibrate.config import CalibrateConfig
from embedder.calibrate.run import Report, run_calibrate
from embedder.config.cli import run_job
from embedder.config.load import load_config
from embedder.model.calibration import Calibration, write_calibration
from embedder.observe.logs import start_logging
from embedder.observe.progress import align


def describe(report: Report, calibration: Calibration, uri: str) -> str:
    """Return the quality of each depth and dim, and the flags that use the artifact, for a person."""
    rows = [
        (
            f"depth {each.depth}",
            ", ".join(f"{it.cosine:.3f} {it.overlap:.2f}" for it in (each.calibrated, each.native))
            + ("" if each.known_item is None else f", {each.known_item:.3f}")
            + f"  ({each.num_features:,} features, strength {each.strength:g})",
        )
        for each in report.exits
    ]
    if rows:
        searched = (
            f"; nDCG@10 of {report.known_items:,} first sentences as queries, full model {report.known_item:.3f}"
            if report.known_item
            else ""
        )
        rows.insert(0, ("held out", f"cosine and share of the full model's ten nearest: calibrated, raw{searched}"))
    if report.cuts:
        rows.append(("truncated", "share of the full vectors' ten nearest: plain, rotated first"))
        rows += [(f"dim {each.dim}", f"{each.plain:.2f}, {each.rotated:.2f}") for each in report.cuts]
    fitted = f"{report.chunks_fitted:,} chunks and {report.chunks_synthetic:,} synthetic ones fitted on"
    if report.broad:
        fitted += f", beside {report.broad.chunks:,} of {report.broad.source} that weigh {report.broad.weight:g}"
    if report.neurons_kept:
        rows.insert(0, ("feed-forward", f"{report.neurons_kept:,} neurons a layer kept, behind every exit below"))
    sample = f"{report.documents:,} documents; {fitted}, {report.chunks_held_out:,} held out"
    usage = f"use it with --embedding.calibration {uri}, and --embedding.depth … or --embedding.rotate true"
    return align([("sample", sample), *rows, ("calibration", f"{uri}, {calibration.fingerprint}; {usage}")])


def main(args: Sequence[str]) -> int:
    """Fit and write the artifact, and print its quality."""
    start_logging()
    config = load_config(CalibrateConfig, args, job="jobs.calibrate").config
    calibration, report = run_calibrate(config)
    write_calibration(calibration, config.output.uri)
    print(describe(report, calibration, config.output.uri))
    return 0


if __name__ == "__main__":
    run_job(main)
