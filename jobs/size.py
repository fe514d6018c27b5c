"""Size a cluster for a corpus, from the table's largest run and a given rate of a GPU; reads only the table's log.

python -m jobs.size CONFIG --gpus 64 --tokens-per-second 400000 --documents 1000000000 [--gpus-per-node 8] [--json]
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import tyro

from embedder.config.cli import run_job
from embedder.config.embed import EmbedConfig
from embedder.config.load import load_config, parse_options
from embedder.core.errors import ConfigError
from embedder.observe.progress import align
from embedder.run.cluster_size import Fleet, describe_size, learn_document, size_fleet
from embedder.table.commits import list_commits

MOST_VERSIONS = 100


@dataclass(frozen=True)
class Sizing:
    """Size a cluster: the CPU rates are measured, the GPU's is given."""

    config: tyro.conf.Positional[str]
    """YAML file of a run whose table holds a sample of the corpus."""
    gpus: int
    tokens_per_second: float
    """Rate of one GPU at this depth: measure it with jobs.throughput, or with a run on one."""
    documents: float
    """Documents to embed."""
    gpus_per_node: int = 8
    unit_seconds: float = 10.0
    """Seconds that a unit of work should keep a GPU busy."""
    json: bool = False
    """Print JSON."""


def main(args: Sequence[str]) -> int:
    """Read the table's runs, and print the size."""
    options = parse_options(Sizing, args, "jobs.size")
    numbers = (options.gpus, options.tokens_per_second, options.documents, options.gpus_per_node, options.unit_seconds)
    if not all(0 < each < math.inf for each in numbers):
        raise ConfigError("--gpus, --tokens-per-second, --documents, --gpus-per-node and --unit-seconds: all must be more than 0")
    output = load_config(EmbedConfig, [options.config]).config.output
    document = learn_document(commit.info for commit in list_commits(output.location, MOST_VERSIONS) if commit.info)
    fleet = Fleet(options.gpus, options.gpus_per_node, options.tokens_per_second, options.documents, options.unit_seconds)
    size = size_fleet(document, fleet)
    print(json.dumps({"document": asdict(document), "size": asdict(size)}) if options.json else align(describe_size(document, fleet, size)))
    return 0


if __name__ == "__main__":
    run_job(main)
