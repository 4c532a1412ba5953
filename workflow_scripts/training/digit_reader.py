"""Training of the digit classifier, on the training digits of the consistency model; 360 digits are held out."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from quantwatt.score.digit_classifier import DigitClassifier
from training import loop

RECIPE = loop.Recipe(steps=900, batch=64, learning_rate=3e-3, warmup=30, decay=0.7, weight_decay=0.05, average=0.99)
SHIFT = 1  # largest random shift in pixels: digits are not centred alike
NOISE = 0.15  # largest standard deviation of noise added to pictures in [-1, 1], for robustness to faint noise


def train(
    images: np.ndarray, classes: np.ndarray, checkpoint: Path, seed: int, recipe: loop.Recipe = RECIPE
) -> tuple[DigitClassifier, float]:
    """Trains on uint8 pictures [n, 16, 16, 3] of classes [n]; returns the classifier and the CPU seconds it took."""
    torch.manual_seed(seed)
    model = DigitClassifier()
    pictures, labels = loop.to_tensor(images), torch.from_numpy(classes)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = torch.randint(len(images), (recipe.batch,), generator=generator)
        down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
        x = torch.roll(pictures[chosen], (down, right), (2, 3))  # the rim is background
        strength = NOISE * torch.rand(recipe.batch, 1, 1, 1, generator=generator)
        x = x + strength * torch.randn(x.shape, generator=generator)
        return {"loss": nn.functional.cross_entropy(model(x), labels[chosen])}

    cpu_s = loop.train("digits", model, loss_of, recipe, checkpoint, seed)
    return model.eval(), cpu_s
