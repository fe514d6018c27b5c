"""The size of a sample and of its maps → bytes of memory and of disk, compared with the machine's before any text is encoded."""

import logging
from dataclasses import dataclass

from embedder.calibrate.config import AttentionSettings
from embedder.calibrate.ridge import Features
from embedder.core.errors import ConfigError

MOST_CHUNKS, LEAST_CHUNKS = 12_288, 4096
"""Chunks to train attention pooling on, unless a setting says how many."""
MOST_VALUES = LEAST_CHUNKS * 12 * 768
"""Chunks × layers that maps read × hidden size, of more than LEAST_CHUNKS: as of so many with 12 layers of 768."""

FEW_QUERIES, MANY_QUERIES = 2, 4
MOST_FOR_MANY = 512
"""Components of a state up to which a layer has many queries: of wider ones, a map would read fewer layers."""

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
        most = choose_chunks(features, settings)
        if not most:
            return 0
        chunks = min(most, self.fitted)
        num_rows = chunks + min(most, self.held_out)
        layers = [len(each) for each in features.layers.values()]
        heads = 4 * sum(layers) * features.num_queries * features.hidden_size * width
        states = num_rows * (len(features.tapped) + 3) * features.block
        return 4 * (heads + states + 2 * num_rows * len(layers) * width + 3 * chunks**2)


def choose_queries(hidden_size: int, wanted: int | None = None) -> int:
    """Return the queries of a layer."""
    return wanted or (MANY_QUERIES if hidden_size <= MOST_FOR_MANY else FEW_QUERIES)


def choose_chunks(features: Features, settings: AttentionSettings) -> int:
    """Return the chunks to train attention pooling on: of a small model more, for the time and disk that a larger one takes."""
    if settings.chunks is not None:
        return settings.chunks
    read = {layer for layers in features.layers.values() for layer in layers}
    return max(LEAST_CHUNKS, min(MOST_CHUNKS, MOST_VALUES // max(1, len(read) * features.hidden_size)))


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
