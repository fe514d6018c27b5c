"""The size of a sample and of its maps → bytes of memory and of disk, compared with the machine's before any text is encoded."""

import logging
from dataclasses import dataclass

from embedder.calibrate.config import AttentionSettings
from embedder.calibrate.ridge import Features
from embedder.core.errors import ConfigError
from embedder.model.attention_pooling import NUM_QUERIES

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class SampleSize:
    """Numbers of chunks."""

    fitted: int
    """That maps are fitted on, with synthetic and broad ones."""
    held_out: int
    """With known items."""
    most_in_unit: int

    def disk_bytes(self, features: Features, width: int) -> int:
        """Return the bytes of the rows that maps are fitted on."""
        return 4 * self.fitted * (len(features.tapped) * features.block + width)

    def fit_bytes(self, features: Features, width: int) -> int:
        """Return the memory to fit the largest map: a matrix and its factor, over its features or the chunks, some solutions, a block of
        features of all chunks or all features of a unit, with the sum before, products with the chunks held out, the states of these and
        of one unit on arrival, and all maps. These are also held twice more when the artifact is written."""
        largest = max(len(each) * features.block for each in features.layers.values())
        order = min(largest, self.fitted)
        read = self.most_in_unit * largest if largest <= self.fitted else self.fitted * features.block
        states = 4 * len(features.tapped) * features.block
        solved = order * (2 * order + 6 * width + self.held_out)
        fitting = 8 * (solved + 2 * read) + 2 * states * (self.held_out + self.most_in_unit)
        maps = 4 * width * sum(len(each) * features.block for each in features.layers.values())
        return max(fitting + maps, 3 * maps)

    def training_bytes(self, features: Features, width: int, settings: AttentionSettings) -> int:
        """Return the memory to train the pooling queries: heads with gradients and moments, pooled states and mapped vectors of all chunks,
        a block of features standardized, and three square matrices over those to train on."""
        if not settings.chunks:
            return 0
        chunks = min(settings.chunks, self.fitted)
        num_rows = chunks + min(settings.chunks, self.held_out)
        layers = [len(each) for each in features.layers.values()]
        heads = 4 * sum(layers) * NUM_QUERIES * features.hidden_size * width
        states = num_rows * (len(features.tapped) + 3) * features.block
        return 4 * (heads + states + 2 * num_rows * len(layers) * width + 3 * chunks**2)


def check_room(features: Features, size: SampleSize, width: int, settings: AttentionSettings, room: tuple[int, int]) -> None:
    """Raise ConfigError if training or fitting exceeds the room, bytes of memory and of disk, before hours of tapping."""
    if not features.layers:
        return
    memory_bytes, disk_bytes = room
    fit, training = size.fit_bytes(features, width), size.training_bytes(features, width, settings)
    disk, what = size.disk_bytes(features, width), f"{len(features.layers)} maps on {size.fitted:,} chunks"
    multiply_adds = max(len(each) for each in features.layers.values()) * features.block * width
    logger.info(
        "%s take %.1f GB of memory to fit, attention pooling %.1f beside the model, and %.1f GB of disk; the largest map adds %.1f M "
        "multiply-adds to a chunk",
        *(what, fit / 1e9, training / 1e9, disk / 1e9, multiply_adds / 1e6),
    )
    if max(fit, training) > memory_bytes:
        setting = "calibrate.depths" if fit >= training else "calibrate.attention.chunks"
        raise ConfigError(
            f"{setting}: {what} take {fit / 1e9:.1f} GB of memory to fit and attention pooling {training / 1e9:.1f}, this machine has "
            f"{memory_bytes / 1e9:.1f}; name fewer calibrate.depths, lower calibrate.attention.chunks or calibrate.num_documents, or "
            "calibrate on a machine with more memory"
        )
    if disk > disk_bytes:
        raise ConfigError(
            f"calibrate.num_documents: {what} take {disk / 1e9:.1f} GB of disk, {disk_bytes / 1e9:.1f} are free in the temporary folder; "
            "set TMPDIR to a larger one, or lower calibrate.num_documents or calibrate.synthetic"
        )
