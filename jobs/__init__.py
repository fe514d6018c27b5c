"""What is run: one job a file, each of a few lines."""

from embedder.observe.process import tune_gc

tune_gc()
