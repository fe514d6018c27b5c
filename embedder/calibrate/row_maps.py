"""Pooled states of the chunks of a training and their vectors → predictions by ridge maps, on the encoder's device and in float32.

N = chunks, those held out first, X = features of a layer, W = the full model's width.
"""

import math

import torch
from torch import Tensor

from embedder.calibrate.ridge import LEAST_DEVIATION

STRENGTH = 0.3
"""Of the ridge maps that heads correct, and of those compared on chunks held out."""


def multiply_rows(states_NX: Tensor, num_held_out: int) -> Tensor:
    """Return the products of all rows with those that are not held out, over features standardized on these."""
    fitted_NX = states_NX[num_held_out:]
    deviation_X, mean_X = fitted_NX.std(dim=0).clamp_min(LEAST_DEVIATION), fitted_NX.mean(dim=0)
    standard_NX = (states_NX - mean_X) / (deviation_X * math.sqrt(len(fitted_NX)))
    return standard_NX @ standard_NX[num_held_out:].T


def map_rows(inner_NN: Tensor, full_NW: Tensor, num_held_out: int, leaves_out: bool) -> Tensor:
    """Fit a ridge map on the rows that are not held out, from the products of rows; return its predictions for those held out and, if one
    is left out, for the others.

    The system is solved in the space of rows, which are fewer than features. A fitted row's prediction is that of a map fitted without
    this row: its leave-one-out residual is α divided by the diagonal of the inverse.
    """
    fitted_NW = full_NW[num_held_out:]
    mean_W = fitted_NW.mean(dim=0)
    system_NN = inner_NN[num_held_out:].clone()
    system_NN.diagonal().add_(STRENGTH)
    factor_NN = torch.linalg.cholesky(system_NN)
    del system_NN
    alpha_NW = torch.cholesky_solve(fitted_NW - mean_W, factor_NN)
    held_out_NW = inner_NN[:num_held_out] @ alpha_NW + mean_W
    if not leaves_out:
        return held_out_NW
    return torch.cat([held_out_NW, fitted_NW - alpha_NW / torch.cholesky_inverse(factor_NN).diagonal().unsqueeze(-1)])
