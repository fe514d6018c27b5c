"""Make a table of embeddings match its source: first run, resume, refresh, and nothing to do.

python -m jobs.embed configs/embed/quickstart.yaml [--section.key VALUE …] [--dry-run] [--print-config] [--json]
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from embedder.config.cli import run_job
from embedder.config.embed import EmbedConfig
from embedder.config.load import load_config
from embedder.observe.logs import start_logging
from embedder.observe.notify import check_address, notify_failed, notify_finished
from embedder.run.dry_run import preview_run
from embedder.run.embed import prepare_and_warm_up, run_embed
from embedder.run.prepare import prepare_run
from embedder.run.recut import check_cuts, run_cuts

JOB = "jobs.embed"


def main(args: Sequence[str]) -> int:
    """Check, plan, embed, publish, print the summary, and notify; return 0, or 1 if a shard failed."""
    start_logging()
    check_address()
    config, actions = load_config(EmbedConfig, args, ("dry-run", "json"), JOB)
    as_json, is_dry = "json" in actions, "dry-run" in actions
    run_plan = prepare_run(config) if is_dry else prepare_and_warm_up(config)
    check_cuts(config, run_plan.spec)
    if is_dry:
        preview = preview_run(run_plan)
        print(json.dumps(preview.record()) if as_json else preview.text())
        return 0
    summary = run_embed(run_plan)
    cuts = run_cuts(config) if summary.version is not None or summary.did_nothing else []
    record = summary.record() | ({"cuts": [asdict(each) for each in cuts]} if cuts else {})
    text, failed = "\n".join([summary.text(), *(each.text() for each in cuts)]), bool(summary.failures)
    print(json.dumps(record) if as_json else text, flush=True)
    notify_finished(JOB, args, record, text, failed)
    return 1 if failed else 0


if __name__ == "__main__":
    run_job(main, partial(notify_failed, JOB))
