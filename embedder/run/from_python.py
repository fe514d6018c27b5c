"""Run an embed job from Python: the same steps as jobs.embed, without its output."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedder.config.embed import EmbedConfig
from embedder.config.load import load_settings
from embedder.run.embed import prepare_and_warm_up, run_embed
from embedder.run.recut import check_cuts, run_cuts
from embedder.run.summary import Summary


def embed(config: EmbedConfig | str | Path | Mapping[str, Any], overrides: Mapping[str, Any] = MappingProxyType({})) -> Summary:
    """Make the table at output.uri match the documents at source.uri, and return the counts of the run.

    `config` is a YAML file, a mapping of its sections, or an EmbedConfig; `overrides` sets single settings by their dotted names:

        summary = embedder.embed("configs/embed/quickstart.yaml", {"embedding.depth": 6, "output.uri": "./out"})
        print(summary.text())

    Wrong settings raise ConfigError before any document is read. Shards that could not be read are in `summary.failures`; the
    documents of all others are published. Ray is started if this process has none and there is much to read.
    """
    settings = load_settings(EmbedConfig, config, overrides)
    run_plan = prepare_and_warm_up(settings)
    check_cuts(settings, run_plan.spec)
    summary = run_embed(run_plan)
    if summary.version is not None or summary.did_nothing:
        run_cuts(settings)
    return summary
