"""Batch embedding of large corpora at a chosen depth and dim, kept in step with its source."""

__version__ = "0.1.0"
