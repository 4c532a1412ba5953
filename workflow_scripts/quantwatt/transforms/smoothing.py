"""SmoothQuant (arXiv 2211.10438): move outliers of the activations into the weights, column by column."""

import torch


class ColumnMaximum:
    """Largest magnitude of every input column over all tokens."""

    def __init__(self, columns):
        self.value = torch.zeros(columns)

    def observe(self, inputs):
        """Add inputs [tokens, columns]."""
        self.value = torch.maximum(self.value, inputs.float().abs().amax(dim=0))


new_statistics = ColumnMaximum


def apply(weight, settings, statistics):
    """Divide inputs and multiply weights by s = max|x|^alpha / max|w|^(1 - alpha) (equation 4).

    Columns without inputs or weights are left as they are. The factor is rounded to bfloat16 first, which every
    computing type but float16 holds exactly, so that the weight takes back what the input really gets.

    Args:
        weight: [rows, columns] float32.
        settings: alpha, from 0 (weights are made even) to 1 (activations are: all of the difficulty moves).
    Returns:
        (weight * s [rows, columns], 1 / s [columns]).
    """
    largest_weight = weight.abs().amax(dim=0)
    smoothing = statistics.value ** settings["alpha"] / largest_weight ** (1 - settings["alpha"])
    smoothing[(statistics.value == 0) | (largest_weight == 0)] = 1
    factor = (1 / smoothing).to(torch.bfloat16).float()
    return weight / factor, factor
