"""A small classifier of digits, trained on real digits only; its penultimate layer gives features."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quantwatt.data import digits

FEATURES = 64


class DigitClassifier(nn.Module):
    """Convolutions down to 4 x 4, a linear layer of features, and a linear head."""

    image_size = digits.IMAGE_SIZE

    def __init__(self, width: int = 24):
        super().__init__()
        self.width = width
        layers: list[nn.Module] = []
        for before, after, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 2)):
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.GroupNorm(8, after), nn.GELU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * width, FEATURES), nn.GELU())
        self.head = nn.Linear(FEATURES, digits.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, 10] of pictures [n, 3, 16, 16] in [-1, 1]."""
        return self.head(self.features_of(x))

    def features_of(self, x: torch.Tensor) -> torch.Tensor:
        """Features [n, 64], the input of the head, of pictures [n, 3, 16, 16] in [-1, 1]."""
        return self.features(x.mean(1, keepdim=True))


def save(model: DigitClassifier, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"width": model.width}) + "\n")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")


def load(folder: Path) -> DigitClassifier:
    """Load a classifier that `save` has written."""
    model = DigitClassifier(json.loads((folder / "config.json").read_text())["width"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


@torch.no_grad()
def read(model: DigitClassifier, x: torch.Tensor, batch: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """(features [n, 64], predicted digits [n]) of pictures [n, 3, 16, 16] in [-1, 1]."""
    features = torch.cat([model.features_of(part) for part in x.split(batch)])
    return features, model.head(features).argmax(-1)
