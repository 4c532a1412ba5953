"""The attribute classifier: predicts the attributes of a scene from a picture; trained on renders only."""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quantwatt.data import scenes
from quantwatt.data.scenes import Scene, Shape

RELATIONS = ("left of", "above")  # the relations of canonical scenes
_PLACES = ("first", "second")  # first: the left or upper object
CLASSES: dict[str, tuple] = {
    "objects": (1, 2),
    "relation": RELATIONS,
    "background": tuple(scenes.BACKGROUNDS),
    **{f"{place} size": tuple(scenes.SIZES) for place in _PLACES},
    **{f"{place} colour": tuple(scenes.COLOURS) for place in _PLACES},
    **{f"{place} shape": scenes.SHAPES for place in _PLACES},
}
UNDEFINED = -1  # the class of attributes that a scene with one object does not have


def classes_of(scene: Scene) -> list[int]:
    """The class index of the scene for every entry of CLASSES, UNDEFINED where the scene lacks the attribute."""
    scene = scene.canonical()
    values = {"objects": len(scene.objects), "relation": scene.relation, "background": scene.background}
    for place, shape in zip(_PLACES, scene.objects, strict=False):
        values |= {f"{place} size": shape.size, f"{place} colour": shape.colour, f"{place} shape": shape.kind}
    return [
        options.index(values[name]) if values.get(name) is not None else UNDEFINED for name, options in CLASSES.items()
    ]


def scene_of(classes: dict[str, int]) -> Scene:
    """The canonical scene with the given class index for every entry of CLASSES."""
    value = {name: options[classes[name]] for name, options in CLASSES.items()}
    shapes = [Shape(value[f"{p} size"], value[f"{p} colour"], value[f"{p} shape"]) for p in _PLACES]
    count = value["objects"]
    return Scene(tuple(shapes[:count]), value["relation"] if count == 2 else None, value["background"])


class AttributeClassifier(nn.Module):
    """Four strided convolutions and one linear head for every entry of CLASSES."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.width = width
        channels = (3, width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.GELU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.GELU()]
        # All attributes except the background depend on position: no pooling before the shared linear layer.
        self.features = nn.Sequential(
            *layers, nn.Conv2d(channels[-1], width, 1), nn.Flatten(), nn.Linear(16 * width, 4 * width), nn.GELU()
        )
        self.heads = nn.ModuleList(nn.Linear(4 * width, len(options)) for options in CLASSES.values())

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Logits of every entry of CLASSES from pictures [n, 3, 64, 64] in [-1, 1]."""
        features = self.features(x)
        return [head(features) for head in self.heads]


def save(model: AttributeClassifier, folder: Path) -> None:
    """Writes config.json and model.safetensors in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"width": model.width, "classes": CLASSES}, indent=1) + "\n")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def load(folder: Path) -> AttributeClassifier:
    """The saved classifier in float32.

    Raises ValueError if its classes differ from CLASSES.
    """
    config = json.loads((folder / "config.json").read_text())
    if config["classes"] != {name: list(options) for name, options in CLASSES.items()}:
        raise ValueError(f"{folder} was trained for other attributes")
    model = AttributeClassifier(config["width"])
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model.eval()


@torch.no_grad()
def read(model: AttributeClassifier, images: np.ndarray, batch: int = 256) -> list[Scene]:
    """The canonical scene predicted for each uint8 picture [n, 64, 64, 3]."""
    predicted = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch]))
        logits = model(x.permute(0, 3, 1, 2).contiguous().float().div(127.5).sub(1))
        best = torch.stack([head.argmax(-1) for head in logits], 1).tolist()
        predicted += [scene_of(dict(zip(CLASSES, row, strict=True))) for row in best]
    return predicted


def all_right(model: AttributeClassifier, images: np.ndarray, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """For each picture, whether all attributes of its caption are right, and whether the caption has two objects.

    Both are bool [n]; `right[~two]` and `right[two]` separate captions of one and of two objects.
    """
    asked = [scenes.parse(text).canonical() for text in captions]
    right = np.array([seen == scene for seen, scene in zip(read(model, images), asked, strict=True)], bool)
    return right, np.array([scene.relation is not None for scene in asked], bool)
