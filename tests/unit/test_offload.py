"""Text encoders that are offloaded; the device here is the CPU under another name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.inference import drawing
from quantwatt.models import offload
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Drawing

ROOT = Path(__file__).parents[2]
MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"] | {"offload": "text-encoders"}
DEVICE = torch.device("cpu:0")
SAMPLING = Drawing(steps=2, guidance=2.0, height=64, width=64)
PROMPTS = ["a large red circle on a white background", "a small blue square on a black background"]
FAMILY = load_family("sd3")


class Place:
    """Where a module was last moved to, in a list of all moves."""

    def __init__(self, module, monkeypatch):
        self.device, self.moves, move = None, 0, module.to
        monkeypatch.setattr(module, "to", lambda device: self.note(device) and move(device))

    def note(self, device):
        self.moves += str(device) != str(self.device)
        self.device = device
        return True


@pytest.fixture
def pipeline():
    return FAMILY.load(MODEL, ROOT / MODEL["path"])


def test_encoders_are_on_the_device_only_while_they_encode(pipeline, monkeypatch):
    expected = FAMILY.generate(FAMILY.load(MODEL, ROOT / MODEL["path"]), PROMPTS, [0, 1], SAMPLING)
    names = ("text_encoder", "text_encoder_2", "transformer", "vae")
    places = {name: Place(getattr(pipeline, name), monkeypatch) for name in names}
    seen = []

    def note(module, args, kwargs):
        seen.append([str(place.device) for place in places.values()])

    offload.without_text_encoders(pipeline, DEVICE)
    assert [str(place.device) for place in places.values()] == ["cpu", "cpu", "cpu:0", "cpu:0"]
    pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    images = FAMILY.generate(pipeline, PROMPTS, [0, 1], SAMPLING)
    assert np.array_equal(images, expected)
    assert seen == [["cpu", "cpu", "cpu:0", "cpu:0"]] * 2
    assert places["text_encoder"].moves > 2 and places["text_encoder_2"].moves > 2  # to the device, and back


def test_a_cache_skips_what_it_skips_without(pipeline):
    asked, drawn = replace(SAMPLING, steps=3), []
    for place in (lambda: pipeline, lambda: offload.without_text_encoders(pipeline, DEVICE)):
        cache = drawing.Cache(place(), pipeline.transformer, {"name": "first-block", "threshold": 100})
        with cache.drawing(asked):
            drawn.append(FAMILY.generate(pipeline, PROMPTS, [0, 1], asked))
        assert 0 < cache.calls["skipped"] < cache.calls["asked"]
    assert np.array_equal(*drawn)


def test_embeddings_that_are_there_move_nothing(pipeline, monkeypatch):
    offload.without_text_encoders(pipeline, DEVICE)
    phases = FAMILY.phases(pipeline, PROMPTS, [0, 1], SAMPLING)
    place = Place(pipeline.text_encoder, monkeypatch)
    phases["denoise"]()
    assert str(place.device) in ("None", "cpu")
    phases["text"]()
    assert str(place.device) == "cpu" and place.moves > 1


def test_on_a_cpu_nothing_is_moved(pipeline, monkeypatch):
    assert offload.place(pipeline, MODEL, "cpu") is pipeline
    place = Place(pipeline.text_encoder, monkeypatch)
    FAMILY.generate(pipeline, PROMPTS, [0, 1], SAMPLING)
    assert place.moves == 0


def test_a_pipeline_without_text_is_refused():
    entry = experiment.load_experiment("embedded-digits")["models"]["tiny-consistency"]
    digits = load_family("consistency").load(entry, ROOT / entry["path"])
    with pytest.raises(DataError, match="offload: ConsistencyModelPipeline has no text encoders"):
        offload.without_text_encoders(digits, DEVICE)


def test_the_schema_knows_it():
    assert experiment.load_experiment("embedded")["models"]["tiny-sd3"]["offload"] is None
