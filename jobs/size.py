"""Size a cluster for a corpus, from the table's largest run and the rate of a GPU that you give; nothing is read but the table's log.

python -m jobs.size CONFIG --gpus 64 --tokens_per_second 400000 --documents 1000000000 [--gpus_per_node 8] [--json]
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import tyro

from embedder.config.cli import run_job
from embedder.config.embed import EmbedConfig
from embedder.config.load import load_config
from embedder.core.errors import ConfigError
from embedder.observe.progress import align
from embedder.run.cluster_size import Fleet, describe_size, learn_document, size_fleet
from embedder.table.delta import list_commits

MOST_VERSIONS = 100


@dataclass(frozen=True)
class Sizing:
    """What the fleet would be. The CPU's part is measured, the GPU's is what you say of it."""

    config: tyro.conf.Positional[str]
    """YAML file of a run whose table a run on a sample of the corpus has filled."""
    gpus: int
    tokens_per_second: float
    """Of one GPU, at this depth: measure it with jobs.throughput, or with a run on one."""
    documents: float
    """To embed."""
    gpus_per_node: int = 8
    unit_seconds: float = 10.0
    """That a unit of work should keep a GPU busy."""
    json: bool = False
    """JSON instead of lines."""


def main(args: Sequence[str]) -> int:
    """Read the table's runs, size and print."""
    asked = tyro.cli(Sizing, args=args, prog="python -m jobs.size", use_underscores=True)
    numbers = (asked.gpus, asked.tokens_per_second, asked.documents, asked.gpus_per_node, asked.unit_seconds)
    if not all(0 < each < math.inf for each in numbers):
        raise ConfigError("--gpus, --tokens_per_second, --documents, --gpus_per_node and --unit_seconds: all must be more than 0")
    output = load_config(EmbedConfig, [asked.config]).config.output
    runs = (commit.info for commit in list_commits(output.location, MOST_VERSIONS) if commit.info)
    document = learn_document(runs)
    fleet = Fleet(asked.gpus, asked.gpus_per_node, asked.tokens_per_second, asked.documents, asked.unit_seconds)
    size = size_fleet(document, fleet)
    print(json.dumps({"document": asdict(document), "size": asdict(size)}) if asked.json else align(describe_size(document, fleet, size)))
    return 0


if __name__ == "__main__":
    run_job(main)
