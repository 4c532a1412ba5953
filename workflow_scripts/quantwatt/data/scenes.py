"""Captioned scenes of coloured shapes, 64 x 64 pixels: the data of the embedded models.

A scene has one or two objects on a plain background. Every image and caption is determined by a seed. Two objects
always differ in colour: the relation is visible in the image, and exchanging it makes the caption false.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np

IMAGE_SIZE = 64
COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 214),
    "yellow": (240, 205, 40),
    "purple": (140, 50, 170),
    "orange": (245, 130, 30),
}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (140, 140, 140), "black": (20, 20, 20)}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES = {"small": (7.5, 8.5), "large": (12.5, 13.5)}  # radius in pixels, from and to
RELATIONS = ("left of", "right of", "above", "below")
ATTRIBUTES = ("colour", "shape", "size", "relation", "background")
ONE_OBJECT_SHARE = 0.4

_CONVERSE = {"right of": "left of", "below": "above"}
_OFFSET = 15.5  # distance of each of two objects from the centre, in pixels along the axis of their relation
_ROWS, _COLUMNS = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + 0.5


@dataclass(frozen=True)
class Shape:
    """One object of a scene: keys of SIZES and COLOURS, a member of SHAPES."""

    size: str
    colour: str
    kind: str


@dataclass(frozen=True)
class Scene:
    """One object, or two objects with the relation of the first to the second, on a background."""

    objects: tuple[Shape, ...]
    relation: str | None
    background: str

    def canonical(self) -> "Scene":
        """The same scene described from its left or upper object: only 'left of' and 'above' remain."""
        if self.relation not in _CONVERSE:
            return self
        return replace(self, objects=self.objects[::-1], relation=_CONVERSE[self.relation])


def _choose(rng: np.random.Generator, options, but=()) -> str:
    return str(rng.choice([option for option in options if option not in but]))


def random_scene(rng: np.random.Generator) -> Scene:
    """A random scene: one object with probability ONE_OBJECT_SHARE, everything else equally likely."""
    count = 1 if rng.random() < ONE_OBJECT_SHARE else 2
    objects: list[Shape] = []
    for _ in range(count):
        taken = [shape.colour for shape in objects]
        objects.append(Shape(_choose(rng, SIZES), _choose(rng, COLOURS, taken), _choose(rng, SHAPES)))
    relation = _choose(rng, RELATIONS) if count == 2 else None
    return Scene(tuple(objects), relation, _choose(rng, BACKGROUNDS))


def caption(scene: Scene) -> str:
    """The scene in words: "a large red circle left of a small blue ring on a white background"."""
    objects = [f"a {shape.size} {shape.colour} {shape.kind}" for shape in scene.objects]
    return f" {scene.relation} ".join(objects) + f" on a {scene.background} background"


def parse(text: str) -> Scene:
    """The scene a caption describes; the inverse of `caption`.

    Raises ValueError where the text is not a caption of this vocabulary.
    """
    objects, separator, background = text.strip().removesuffix(" background").rpartition(" on a ")
    relation = next((r for r in RELATIONS if f" {r} a " in objects), None)
    parts = objects.split(f" {relation} ") if relation else [objects]
    words = [part.split() for part in parts]
    if not separator or any(len(w) != 4 or w[0] != "a" for w in words):
        raise ValueError(f"not a caption of a scene: {text!r}")
    scene = Scene(tuple(Shape(*w[1:]) for w in words), relation, background)
    known = all(s.size in SIZES and s.colour in COLOURS and s.kind in SHAPES for s in scene.objects)
    if not known or background not in BACKGROUNDS or caption(scene) != text.strip():
        raise ValueError(f"not a caption of a scene: {text!r}")
    return scene


def change_attribute(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """The scene with one of ATTRIBUTES changed; an attribute of objects is changed for a random object.

    Raises ValueError for an unknown attribute, and for the relation of a single object.
    """
    if attribute == "background":
        return replace(scene, background=_choose(rng, BACKGROUNDS, (scene.background,)))
    if attribute == "relation":
        if scene.relation is None:
            raise ValueError("a scene of one object has no relation")
        return replace(scene, relation=_choose(rng, RELATIONS, (scene.relation,)))
    index = int(rng.integers(len(scene.objects)))
    shape = scene.objects[index]
    if attribute == "colour":
        shape = replace(shape, colour=_choose(rng, COLOURS, [s.colour for s in scene.objects]))
    elif attribute == "shape":
        shape = replace(shape, kind=_choose(rng, SHAPES, (shape.kind,)))
    elif attribute == "size":
        shape = replace(shape, size=_choose(rng, SIZES, (shape.size,)))
    else:
        raise ValueError(f"unknown attribute {attribute!r}; one of {', '.join(ATTRIBUTES)}")
    return replace(scene, objects=(*scene.objects[:index], shape, *scene.objects[index + 1 :]))


def _signed_distance(kind: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance in pixels to the outline, negative inside; near corners a bound, which suffices for blending."""
    if kind == "circle":
        return np.hypot(x, y) - radius
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    if kind == "triangle":
        y = y - 0.29 * radius  # the centre of the inscribed circle is below half the height
        return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.575 * radius
    if kind == "cross":
        long, wide = radius, 0.36 * radius
        return np.minimum(
            np.maximum(np.abs(x) - long, np.abs(y) - wide), np.maximum(np.abs(x) - wide, np.abs(y) - long)
        )
    if kind == "ring":
        return np.abs(np.hypot(x, y) - 0.73 * radius) - 0.27 * radius
    raise ValueError(f"unknown shape {kind!r}")


def _centres(scene: Scene, rng: np.random.Generator) -> list[np.ndarray]:
    """The objects' centres as (x, y) in pixels."""
    middle = IMAGE_SIZE / 2
    if scene.relation is None:
        return [middle + rng.uniform(-7, 7, 2)]
    axis = 0 if scene.relation in ("left of", "right of") else 1
    sign = -1 if scene.relation in ("left of", "above") else 1  # direction of the first object on the axis
    centres = []
    for direction in (sign, -sign):
        centre = middle + rng.uniform(-4, 4, 2)
        centre[axis] = middle + direction * _OFFSET + rng.uniform(-1.2, 1.2)
        centres.append(centre)
    return centres


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render the scene, uint8 [64, 64, 3]; place, radius, angle and tint vary with `rng`."""
    image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    image[:] = np.array(BACKGROUNDS[scene.background]) + rng.uniform(-4, 4)
    for shape, (x0, y0) in zip(scene.objects, _centres(scene, rng), strict=True):
        radius, angle = rng.uniform(*SIZES[shape.size]), rng.uniform(-0.1, 0.1)
        x = np.cos(angle) * (_COLUMNS - x0) + np.sin(angle) * (_ROWS - y0)
        y = np.cos(angle) * (_ROWS - y0) - np.sin(angle) * (_COLUMNS - x0)
        cover = np.clip(0.5 - _signed_distance(shape.kind, x, y, radius), 0, 1)[..., None]
        tint = np.array(COLOURS[shape.colour]) + rng.uniform(-5, 5, 3)
        lit = 1 - 0.12 * (y / radius)[..., None]  # shading by light from above
        image = image * (1 - cover) + np.clip(tint * lit, 0, 255) * cover
    return np.clip(image, 0, 255).round().astype(np.uint8)


def held_out(scene: Scene) -> bool:
    """Whether a scene is held out of training: a tenth of the two-object scenes, chosen by a hash.

    Both descriptions of the same picture are held out together.
    """
    if scene.relation is None:  # only 180 one-object scenes exist, and training needs all of them
        return False
    return zlib.crc32(caption(scene.canonical()).encode()) % 10 == 0


def random_scenes(n: int, rng: np.random.Generator, held: bool | None = None) -> list[Scene]:
    """`n` random scenes; `held`: two-object scenes are all held out (True), none are (False), or either (None)."""
    scenes: list[Scene] = []
    while len(scenes) < n:
        scene = random_scene(rng)
        while held is not None and scene.relation is not None and held_out(scene) != held:
            scene = _random_scene_of_two(rng)
        scenes.append(scene)
    return scenes


def _random_scene_of_two(rng: np.random.Generator) -> Scene:
    while (scene := random_scene(rng)).relation is None:
        pass
    return scene


def prompts(n: int, seed: int, held: bool | None = None) -> list[str]:
    """`n` different captions, determined by the seed; `held` as in `random_scenes`."""
    rng = np.random.default_rng(seed)
    captions: dict[str, None] = {}
    while len(captions) < n:
        captions[caption(random_scenes(1, rng, held)[0])] = None
    return list(captions)


def dataset(n: int, seed: int, held: bool | None = None) -> tuple[np.ndarray, list[str]]:
    """`n` images uint8 [n, 64, 64, 3] and their captions, determined by the seed; `held` as in `random_scenes`."""
    rng = np.random.default_rng(seed)
    scenes = random_scenes(n, rng, held)
    return np.stack([render(scene, rng) for scene in scenes]), [caption(scene) for scene in scenes]
