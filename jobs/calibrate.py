"""Fit exits, principal axes and int8 ranges of a model on a sample of a corpus, so that shallow depths and small dims become usable.

python -m jobs.calibrate CONFIG [--section.key value …] [--print-config]
"""

from collections.abc import Sequence

from embedder.calibrate.config import CalibrateConfig
from embedder.calibrate.run import Report, run_calibrate
from embedder.config.cli import run_job
from embedder.config.load import dump_config, load_config
from embedder.model.calibration import write_calibration
from embedder.observe.logs import start_logging
from embedder.observe.progress import align


def show(report: Report) -> str:
    """Return a table of the quality of each depth and dim."""
    head = "cosine and share of the full model's ten nearest, calibrated, raw"
    rows = [
        (
            f"depth {each.depth}",
            ", ".join(f"{it.cosine:.3f} {it.overlap:.2f}" for it in (each.calibrated, each.native))
            + f"  ({each.num_features:,} features, strength {each.strength:g})",
        )
        for each in report.exits
    ]
    sample = f"{report.documents:,} documents; {report.chunks_fitted:,} chunks fitted on, {report.chunks_held_out:,} held out"
    cuts = [(f"dim {each.dim}", f"{each.plain:.2f}, {each.rotated:.2f}") for each in report.cuts]
    cut_title = "share of the full vectors' ten nearest, truncated as they are, rotated onto the principal axes first"
    return align([("sample", sample), *([("held out", head)] if rows else []), *rows, *([("cut", cut_title)] if cuts else []), *cuts])


def main(args: Sequence[str]) -> int:
    """Fit, write and print. An existing artifact is refused unless it is the same."""
    invocation = load_config(CalibrateConfig, args, ("print-config",), prog="python -m jobs.calibrate")
    if "print-config" in invocation.actions:
        print(dump_config(invocation.config), end="")
        return 0
    start_logging()
    calibration, report = run_calibrate(invocation.config)
    uri = invocation.config.output.uri
    write_calibration(calibration, uri)
    print(show(report))
    usage = f"use it with --embedding.calibration {uri}, and --embedding.depth … or --embedding.rotate true"
    print(align([("calibration", f"{uri}, {calibration.fingerprint}; {usage}")]))
    return 0


if __name__ == "__main__":
    run_job(main)
