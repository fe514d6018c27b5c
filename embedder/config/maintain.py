"""What a maintenance run is asked to do, refused where it makes no sense, and the table it is asked of."""

import math
from dataclasses import dataclass

import tyro

from embedder.config.embed import EmbedConfig
from embedder.config.load import load_config
from embedder.core.errors import ConfigError
from embedder.core.storage import Location

_CONFIG_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class MaintainOptions:
    """What to do, in this order: compact, vacuum, checkpoint, check."""

    table: tyro.conf.Positional[str]
    """Folder of the table, or the YAML file of the run that makes it."""
    compact: bool = False
    """Merge neighbouring small parts of a shard; rows stay as they are, and readers of changes see none."""
    target_mb: float = 128
    """Megabytes of a merged part; parts of half of it or more are left alone."""
    vacuum: bool = False
    """Delete parts that no version needs which was the newest within the age, and leftovers of runs that died."""
    older_than_hours: float = 168
    """The age; more than your longest run takes. Versions that are older can no longer be read afterwards."""
    insist: bool = False
    """Allow an age below an hour; not while a run is going on."""
    checkpoint: bool = False
    """Make a long log open fast, and remove log files older than 30 days."""
    check: bool = False
    """Compare every committed part with its file; exit 1 if there is a fault."""
    deep: bool = False
    """With --check: read every row, too."""
    repair: bool = False
    """With --check: take tasks with faults out of the table, and broken files off storage; the next embed or recut makes them anew."""
    dry_run: bool = False
    """Only say what compact, vacuum and repair would do."""

    def __post_init__(self) -> None:
        problems = []
        if not (self.compact or self.vacuum or self.checkpoint or self.check):
            problems.append("say what to do: --compact, --vacuum, --checkpoint, --check, or several")
        if (self.deep or self.repair) and not self.check:
            problems.append("--deep and --repair go with --check")
        if self.checkpoint and self.dry_run:
            problems.append("--checkpoint has no dry run; leave one of the two out")
        if not 0 < self.target_mb < math.inf:
            problems.append(f"--target_mb={self.target_mb:g}: must be a number above 0")
        if not 0 <= self.older_than_hours < math.inf:
            problems.append(f"--older_than_hours={self.older_than_hours:g}: must be a number from 0 on")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def target_bytes(self) -> int:
        """Bytes of a merged part."""
        return int(self.target_mb * 1e6)

    def locate(self) -> Location:
        """Return the table's location: that of a config, else the uri itself, its endpoint from the environment."""
        if not self.table.endswith(_CONFIG_SUFFIXES):
            return Location(self.table)
        output = load_config(EmbedConfig, [self.table]).config.output
        return output.location
