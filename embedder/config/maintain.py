"""Options of a maintenance run, and the table it is for."""

import math
from dataclasses import dataclass

import tyro

from embedder.config.embed import EmbedConfig
from embedder.config.load import load_config
from embedder.core.errors import ConfigError
from embedder.core.storage import Location


@dataclass(frozen=True)
class MaintainOptions:
    """Maintain a table, in this order: compact, vacuum, checkpoint, check."""

    table: tyro.conf.Positional[str]
    """Folder of the table, or the YAML file of the run that makes it."""
    compact: bool = False
    """Merge neighboring small parts of a shard; rows do not change, and change readers see no change."""
    target_mb: float = 128
    """Megabytes of a merged part; parts of half of it or more are left alone."""
    vacuum: bool = False
    """Delete parts that no version within the age needs, and leftovers of dead runs."""
    older_than_hours: float = 168
    """The age; must exceed your longest run. Versions that were replaced before it can no longer be read afterwards."""
    insist: bool = False
    """Allow an age below an hour; only if no run is in progress."""
    checkpoint: bool = False
    """Make a long log open fast, and remove log files older than 30 days."""
    check: bool = False
    """Compare every committed part with its file; exit 1 on a fault."""
    deep: bool = False
    """With --check: also read every row."""
    repair: bool = False
    """With --check: remove tasks with faults from the table, and broken files from storage; the next embed or recut makes them again."""
    dry_run: bool = False
    """Only print what compact, vacuum and repair would do."""

    def __post_init__(self) -> None:
        problems = []
        if not (self.compact or self.vacuum or self.checkpoint or self.check):
            problems.append("no action; give one or more of --compact, --vacuum, --checkpoint, --check")
        if (self.deep or self.repair) and not self.check:
            problems.append("--deep and --repair go with --check")
        if self.checkpoint and self.dry_run:
            problems.append("--checkpoint has no dry run; leave one of the two out")
        if not 0 < self.target_mb < math.inf:
            problems.append(f"--target-mb={self.target_mb:g}: must be a number above 0")
        if not 0 <= self.older_than_hours < math.inf:
            problems.append(f"--older-than-hours={self.older_than_hours:g}: must be a number of at least 0")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def target_bytes(self) -> int:
        """Bytes of a merged part."""
        return int(self.target_mb * 1e6)

    def locate(self) -> Location:
        """Return the table's location: from the config, or the uri, whose endpoint comes from the environment."""
        if not self.table.endswith((".yaml", ".yml")):
            return Location(self.table)
        return load_config(EmbedConfig, [self.table]).config.output.location
