"""GenEval's questions, exactly answered on captioned shapes, through the stages."""

import json
from pathlib import Path

import numpy as np
import pytest

import features
import fetch_weights
import score
from quantwatt.artifacts import feature_files, images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.data import scenes
from quantwatt.score.metrics import Undefined, geneval
from quantwatt.score.scene_questions import answers

ROOT = Path(__file__).parents[2]
ASKED = "a large red circle left of a small blue ring on a white background"


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        (ASKED, set()),
        ("a small blue ring right of a large red circle on a white background", set()),
        ("a large red circle left of a small blue ring on a gray background", {"right"}),
        ("a small red circle left of a small blue ring on a white background", {"right"}),
        ("a small blue ring left of a large red circle on a white background", {"right", "position"}),
        ("a large blue circle left of a small red ring on a white background", {"right", "colour", "position"}),
        ("a large red square left of a small blue ring on a white background",
         {"right", "object", "colour", "position"}),
        ("a large red circle on a white background", {"right", "count", "object", "colour", "position"}),
    ],
)  # fmt: skip
def test_what_is_seen_answers_what_is_asked(seen, wrong):
    found = answers(scenes.parse(ASKED), scenes.parse(seen))
    assert {name for name, answer in found.items() if answer == 0} == wrong
    one = scenes.parse("a large red circle on a white background")
    assert answers(one, one) == {"right": 1, "count": 1, "object": 1, "colour": 1, "position": -1}


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Features of renders of 60 captions, and of renders of other colours under the same prompts."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    found, captions = scenes.dataset(60, seed=5)
    changed = [scenes.change_attribute(scenes.parse(text), "colour", rng) for text in captions]
    others = np.stack([scenes.render(scene, rng) for scene in changed])
    settings = json.dumps({"weights": "resources/models/attributes", "revision": None, "batch": 32})
    weights = folder / "attributes.json"
    fetch_weights.main(["--extractor", "attributes", "--settings", settings, "--output", str(weights)])
    paths = []
    for name, pixels in (("float", found), ("w2", others)):
        images.write_images(folder / name, [(pixels, captions, list(range(60)))], {"method": name})
        paths.append(folder / "features" / name / "attributes.json")
        features.extract(folder / name / "manifest.json", weights, "cpu", paths[-1])
    return weights, paths, captions


def test_shares_and_their_change_from_the_baselines(read, tmp_path):
    _, (of_float, of_w2), captions = read
    found = {}
    for metric in ("geneval", "geneval-count", "geneval-object", "geneval-colour", "geneval-position"):
        arguments = ["--features", of_w2, "--baseline-features", of_float, "--output", tmp_path / f"{metric}.json"]
        score.main(list(map(str, ["--metric", metric, *arguments])))
        found[metric] = read_json(tmp_path / f"{metric}.json")
    assert found["geneval"]["value"] <= 0.05 and found["geneval"]["change"]["high"] < -0.9
    assert found["geneval-colour"]["value"] <= 0.05 and found["geneval-count"]["value"] >= 0.95
    assert abs(found["geneval-object"]["change"]["value"]) <= 0.05
    position = found["geneval-position"]
    assert position["weights"] == [int(scenes.parse(text).relation is not None) for text in captions]
    assert (position["status"], position["features"], position["reference"]) == ("ok", "attributes", None)


def test_the_interval_is_that_of_the_prompts_that_ask():
    asking = geneval.score(np.array([1, 0, 1, 1]))
    among = geneval.score(np.array([1, -1, 0, 1, -1, -1, 1]))
    assert asking[:3] == among[:3] and among.value == 0.75 and list(among.of_items.weights) == [1, 0, 1, 1, 0, 0, 1]
    assert geneval.change(np.array([0, -1, 1]), np.array([1, -1, 1])).value == -0.5
    with pytest.raises(Undefined, match="no prompt asks for it"):
        geneval.score(np.array([-1, -1]))


def test_other_prompts_and_sizes_are_one_sentence(read, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    for prompts, size in ((["a cat", "a dog"], 64), ([ASKED, ASKED], 32)):
        images.write_images(tmp_path / "x", [(np.resize(pixels, (2, size, 64, 3)), prompts, [0, 1])], {"method": "w4"})
        path = tmp_path / "x.json"
        if size == 64:
            with pytest.raises(DataError, match="reads prompts of scenes alone: not a caption of a scene: 'a cat'"):
                features.extract(tmp_path / "x/manifest.json", read[0], "cpu", path)
        else:
            features.extract(tmp_path / "x/manifest.json", read[0], "cpu", path)
            fields = feature_files.read_features(path)[0]
            assert (fields["status"], fields["reason"][-28:]) == (
                "unsupported",
                "64 pixels, and these are 32 x 64."[-28:],
            )
