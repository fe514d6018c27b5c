"""What is run: one job a file, each of a few lines."""

from embedder.collector import collect_rarely

collect_rarely()
