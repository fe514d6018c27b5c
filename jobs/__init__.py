"""The jobs: one command line a file."""

from embedder.observe.process import tune_gc

tune_gc()
