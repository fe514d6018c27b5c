"""List the supported families and modules, or say whether a model runs: shape, prompts and memory, or the reason why it is refused.

python -m jobs.models
python -m jobs.models BAAI/bge-m3 [--revision main] [--json]
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from embedder.config.cli import run_job
from embedder.config.load import parse_options
from embedder.core.errors import ConfigError
from embedder.model.model_report import describe_model, list_lines, list_support
from embedder.observe.progress import align


@dataclass(frozen=True)
class Models:
    """Show supported models; no weight is loaded, and from a hub only configs and tokenizer are downloaded."""

    model: tyro.conf.Positional[str | None] = None
    """Hub name, folder or package:NAME; without it, list the supported families and modules."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    json: bool = False
    """Print JSON."""


def main(args: Sequence[str]) -> int:
    """Print; 0 if the model runs, 1 if it is refused."""
    options = parse_options(Models, args, "jobs.models")
    if options.model is None:
        if options.revision is not None:
            raise ConfigError(f"--revision {options.revision}: needs a model; give its hub name")
        support = list_support()
        print(json.dumps(support) if options.json else align(support.items()))
        return 0
    report = describe_model(options.model, options.revision)
    print(json.dumps(report) if options.json else align(list_lines(report)))
    return 0 if report["runs"] else 1


if __name__ == "__main__":
    run_job(main)
