"""Scenes: captions and pictures are functions of a seed, and captions describe the pictures."""

from pathlib import Path

import numpy as np
import pytest

from quantwatt.data import scenes
from quantwatt.data.scenes import Scene, Shape

PROMPTS = Path(__file__).parents[2] / "resources" / "prompts"
TWO = Scene((Shape("large", "red", "circle"), Shape("small", "blue", "ring")), "right of", "white")


def test_caption_of_two_objects():
    assert scenes.caption(TWO) == "a large red circle right of a small blue ring on a white background"


def test_parse_inverts_caption():
    for scene in scenes.random_scenes(300, np.random.default_rng(0)):
        assert scenes.parse(scenes.caption(scene)) == scene


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a large red circle",
        "a huge red circle on a white background",
        "a large red circle near a small blue ring on a white background",
        "a large red circle on a pink background",
        "a large red circle on a white background.",
    ],
)
def test_parse_refuses_other_text(text):
    with pytest.raises(ValueError, match="not a caption"):
        scenes.parse(text)


def test_canonical_names_the_left_object_first():
    assert TWO.canonical() == Scene(TWO.objects[::-1], "left of", "white")
    assert TWO.canonical().canonical() == TWO.canonical()


def test_changed_attribute_makes_the_caption_false():
    rng = np.random.default_rng(1)
    for scene in scenes.random_scenes(200, rng):
        for attribute in scenes.ATTRIBUTES:
            if attribute == "relation" and scene.relation is None:
                with pytest.raises(ValueError, match="no relation"):
                    scenes.change_attribute(scene, attribute, rng)
                continue
            changed = scenes.change_attribute(scene, attribute, rng)
            assert changed.canonical() != scene.canonical()
            words = zip(scenes.caption(scene).split(), scenes.caption(changed).split(), strict=False)
            assert attribute == "relation" or sum(a != b for a, b in words) == 1


def test_unknown_attribute_is_refused():
    with pytest.raises(ValueError, match="unknown attribute"):
        scenes.change_attribute(TWO, "texture", np.random.default_rng(0))


def test_objects_of_a_scene_differ_in_colour():
    rng = np.random.default_rng(2)
    for scene in scenes.random_scenes(300, rng):
        for seen in (scene, scenes.change_attribute(scene, "colour", rng)):
            assert len({shape.colour for shape in seen.objects}) == len(seen.objects)


def test_dataset_is_a_function_of_its_seed():
    images, captions = scenes.dataset(8, seed=5)
    again, same = scenes.dataset(8, seed=5)
    other, _ = scenes.dataset(8, seed=6)
    assert images.shape == (8, 64, 64, 3) and images.dtype == np.uint8
    assert captions == same and np.array_equal(images, again) and not np.array_equal(images, other)


def test_render_is_the_same_everywhere():
    image = scenes.render(TWO, np.random.default_rng(0))
    assert np.array_equal(image, scenes.render(TWO, np.random.default_rng(0)))
    assert abs(int(image[2, 2].mean()) - 245) <= 5
    assert image[:, 40:].astype(int)[..., 0].max() > 200  # red, large, on the right


@pytest.mark.parametrize("kind", scenes.SHAPES)
@pytest.mark.parametrize("size", scenes.SIZES)
def test_objects_stay_inside_the_picture(kind, size):
    rng = np.random.default_rng(3)
    for _ in range(30):
        shape = Shape(size, "red", kind)
        other = Shape("large", "blue", kind)
        for scene in (Scene((shape,), None, "black"), Scene((shape, other), "above", "black")):
            image = scenes.render(scene, rng).astype(int)
            border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert np.ptp(border) == 0


def test_prompts_are_captions_that_training_never_saw():
    prompts = (PROMPTS / "shapes-test.txt").read_text().splitlines()
    found = [scenes.parse(text) for text in prompts]
    assert len(set(prompts)) == 512
    assert all(scenes.held_out(scene) for scene in found if scene.relation is not None)
    trained = scenes.random_scenes(500, np.random.default_rng(4), held=False)
    assert not any(scenes.held_out(scene) for scene in trained)


def test_calibration_captions_are_other_ones():
    calibration = (PROMPTS / "shapes-calibration.txt").read_text().splitlines()
    found = [scenes.parse(text) for text in calibration]
    assert len(set(calibration)) == 64
    assert not any(scenes.held_out(scene) for scene in found)
