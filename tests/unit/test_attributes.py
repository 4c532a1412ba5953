"""The attribute classifier: classes of scenes, its files, and its predictions for renders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quantwatt.data import scenes
from quantwatt.data.scenes import Scene, Shape
from quantwatt.score import attribute_classifier as attributes

SAVED = Path(__file__).parents[2] / "resources" / "models" / "attributes"
ONE = Scene((Shape("small", "green", "cross"),), None, "black")
TWO = Scene((Shape("large", "red", "circle"), Shape("small", "blue", "ring")), "below", "gray")


@pytest.fixture(scope="module")
def classifier():
    return attributes.load(SAVED)


@pytest.mark.parametrize("scene", [ONE, TWO])
def test_classes_name_the_canonical_scene(scene):
    indices = attributes.classes_of(scene)
    defined = {name: max(index, 0) for name, index in zip(attributes.CLASSES, indices, strict=True)}
    assert attributes.scene_of(defined) == scene.canonical()


def test_one_object_leaves_the_rest_undefined():
    indices = dict(zip(attributes.CLASSES, attributes.classes_of(ONE), strict=True))
    undefined = {name for name, index in indices.items() if index == attributes.UNDEFINED}
    assert undefined == {"relation", "second size", "second colour", "second shape"}


def test_saved_model_reads_the_same(tmp_path):
    torch.manual_seed(0)
    model = attributes.AttributeClassifier(width=8).half().float().eval()
    images, _ = scenes.dataset(16, seed=0)
    attributes.save(model, tmp_path)
    assert attributes.read(attributes.load(tmp_path), images) == attributes.read(model, images)


def test_classifier_of_other_classes_is_refused(tmp_path):
    attributes.save(attributes.AttributeClassifier(width=8), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["classes"]["background"] = ["white"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="other attributes"):
        attributes.load(tmp_path)


def test_classifier_is_right_on_renders_of_unseen_combinations(classifier):
    images, captions = scenes.dataset(512, seed=71, held=True)
    right, two = attributes.all_right(classifier, images, captions)
    assert right.shape == two.shape == (512,) and right.dtype == bool
    assert two.sum() == sum(scenes.parse(text).relation is not None for text in captions)
    assert right.mean() >= 0.99


def test_classifier_sees_every_changed_attribute(classifier):
    rng = np.random.default_rng(72)
    images, captions = scenes.dataset(200, seed=73)
    for attribute in scenes.ATTRIBUTES:
        chosen = [i for i, c in enumerate(captions) if attribute != "relation" or scenes.parse(c).relation]
        changed = [scenes.caption(scenes.change_attribute(scenes.parse(captions[i]), attribute, rng)) for i in chosen]
        right, _ = attributes.all_right(classifier, images[chosen], changed)
        assert right.mean() <= 0.01


def test_either_way_to_say_it_is_right(classifier):
    image = scenes.render(TWO, np.random.default_rng(0))[None]
    for scene in (TWO, TWO.canonical()):
        assert attributes.all_right(classifier, image, [scenes.caption(scene)])[0].all()
