"""Training of the attribute classifier on renders of scenes."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from quantwatt.data import scenes
from quantwatt.score import attribute_classifier as attributes
from quantwatt.score.attribute_classifier import AttributeClassifier
from training import loop

RECIPE = loop.Recipe(steps=2500, batch=64, learning_rate=2e-3, warmup=100, decay=0.8, weight_decay=0.05, average=0.995)
NOISE = 0.06  # largest standard deviation of noise added to pictures in [-1, 1]: robust to faint noise


def train(
    images: np.ndarray, captions: list[str], checkpoint: Path, seed: int, recipe: loop.Recipe = RECIPE
) -> tuple[AttributeClassifier, float]:
    """Trains on uint8 pictures [n, 64, 64, 3]; returns the classifier and the CPU seconds it took."""
    torch.manual_seed(seed)
    model = AttributeClassifier()
    classes = torch.tensor([attributes.classes_of(scenes.parse(text)) for text in captions])

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = torch.randint(len(images), (recipe.batch,), generator=generator)
        x = loop.to_tensor(images[chosen.numpy()])
        x = x + NOISE * torch.rand(recipe.batch, 1, 1, 1, generator=generator) * torch.randn(
            x.shape, generator=generator
        )
        with loop.autocast():
            logits = model(x)
        losses = [
            nn.functional.cross_entropy(scores.float(), wanted, ignore_index=attributes.UNDEFINED)
            for scores, wanted in zip(logits, classes[chosen].unbind(1), strict=True)
        ]
        return {"loss": torch.stack(losses).mean()}

    cpu_s = loop.train("attributes", model, loss_of, recipe, checkpoint, seed)
    return model.eval(), cpu_s
