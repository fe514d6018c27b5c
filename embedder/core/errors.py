"""Every error a user can meet, as one tree.

EmbedderError
├── ConfigError     the settings cannot be run: fix the file or the flag (exit 2)
│   └── EmptySourceError    the source has no shards
├── SourceError     a shard or the listing cannot be read
├── ModelError      the model's files do not allow what the spec asks
├── StorageError    an object cannot be listed, read or written
│   ├── VersionGoneError    maintenance removed this version of the table
│   └── TableDamagedError   files of the table are damaged or gone, or another tool changed them
├── ClusterError    Ray cannot be started or reached
└── CommitError     the table cannot be published, or another run published first

Each takes one string (*where: what, with the value; what to do*): an exception with more arguments does not survive
the trip from a Ray worker.
"""


class EmbedderError(Exception):
    """An error with a message for the user."""


class ConfigError(EmbedderError):
    """Settings that cannot be run; the message holds every problem found, one a line."""


class EmptySourceError(ConfigError):
    """A source without shards: more likely mistyped or lost than intended."""


class SourceError(EmbedderError):
    """A shard, or the listing of shards, that cannot be read to its end."""


class ModelError(EmbedderError):
    """A model whose files do not allow what was asked of it."""


class StorageError(EmbedderError):
    """An object that cannot be listed, read or written."""


class VersionGoneError(StorageError):
    """A table version that can no longer be read: its log was cleaned up, or its parts were vacuumed."""


class TableDamagedError(StorageError):
    """A table whose log or parts are not as embedder wrote them: damaged, gone, edited, or changed by another tool."""


class ClusterError(EmbedderError):
    """Ray cannot be started on this machine, or reached at its address."""


class CommitError(EmbedderError):
    """A table that cannot be published as planned; the version before it still stands."""
