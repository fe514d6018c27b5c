"""How many CPU threads the encoder computes with: Ray gives a worker one, whatever the machine has."""

import torch


def set_threads(num_threads: int) -> None:
    """Set the threads of every later matrix product of the calling thread."""
    torch.set_num_threads(num_threads)
