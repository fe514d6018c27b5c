"""Fit exits, principal axes and int8 ranges of a model on a sample of a corpus, so that shallow depths and small dims become usable.

python -m jobs.calibrate CONFIG [--section.key value …] [--print-config]
"""

from collections.abc import Sequence

from embedder.calibrate.config import CalibrateConfig
from embedder.calibrate.run import Calibrated, run_calibrate
from embedder.config.cli import run_job
from embedder.config.load import dump_config, load_config
from embedder.model.calibration import write_calibration
from embedder.observe.logs import start_logging
from embedder.observe.progress import align


def show(calibrated: Calibrated) -> str:
    """Lay out what each depth is worth, in the terms that a search notices."""
    is_distilled = any(each.distilled for each in calibrated.exits)
    head = f"cosine and share of the full model's ten nearest, {'distilled, map alone' if is_distilled else 'calibrated'}, raw"
    rows = [
        (
            f"depth {each.depth}",
            ", ".join(f"{it.cosine:.3f} {it.overlap:.2f}" for it in (each.distilled, each.calibrated, each.native) if it)
            + f"  ({each.num_features:,} features, strength {each.strength:g})",
        )
        for each in calibrated.exits
    ]
    sample = f"{calibrated.num_documents:,} documents; {calibrated.num_fitted:,} chunks fitted on, {calibrated.num_held_out:,} held out"
    cuts = [(f"dim {each.dim}", f"{each.plain:.2f}, {each.rotated:.2f}") for each in calibrated.cuts]
    cut_head = [("cut", "share of the full vectors' ten nearest, cut as they are, turned onto their principal axes first")] if cuts else []
    return align([("sample", sample), *([("held out", head)] if rows else []), *rows, *cut_head, *cuts])


def main(args: Sequence[str]) -> int:
    """Fit, write, print; the artifact is new or the same as the one that is there."""
    invocation = load_config(CalibrateConfig, args, ("print-config",), prog="python -m jobs.calibrate")
    if "print-config" in invocation.actions:
        print(dump_config(invocation.config), end="")
        return 0
    start_logging()
    calibrated = run_calibrate(invocation.config)
    write_calibration(calibrated.calibration, invocation.config.output.uri)
    print(show(calibrated))
    uri, fingerprint = invocation.config.output.uri, calibrated.calibration.fingerprint
    print(
        align(
            [
                (
                    "calibration",
                    f"{uri}, {fingerprint}; use it with --embedding.calibration {uri}, and --embedding.depth … or --embedding.rotate true",
                )
            ]
        )
    )
    return 0


if __name__ == "__main__":
    run_job(main)
