"""Distances of latents, step by step: what is kept of a drawing, and what the metrics make of it."""

import types

import numpy as np
import plans
import pytest
import torch

import score as score_rule
from quantwatt.artifacts import images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.config.schemas import ConfigurationError
from quantwatt.models import trajectory
from quantwatt.score.metrics import Undefined, latent_distance, trajectory_distance


class Scheduler:
    """Gives the latents of a list, one step after another."""

    def __init__(self, latents, as_tuple):
        self.latents, self.as_tuple = iter(latents), as_tuple

    def step(self, *args):
        latents = next(self.latents)
        return (latents,) if self.as_tuple else types.SimpleNamespace(prev_sample=latents)


@pytest.mark.parametrize("as_tuple", [True, False])
def test_the_same_places_of_every_step_and_image(as_tuple):
    latents = torch.randn(5, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()  # [steps, images, ...]
    scheduler, recorder = Scheduler(latents, as_tuple), trajectory.Recorder(100)
    with recorder.drawing(scheduler, [7, 8, 9]):
        for _ in latents:
            scheduler.step("noise", 1)
    assert recorder.kept.keys() == {7, 8, 9} and "step" not in vars(scheduler)
    places = trajectory.places(4 * 8 * 8, 100)
    assert len(places.unique()) == 100 and places.max() < 256
    expected = latents[:, 1].float().flatten(1)[:, places].numpy()
    assert recorder.kept[8].dtype == np.float32 and np.array_equal(recorder.kept[8], expected)
    assert trajectory.places(50, 100).tolist() == list(range(50))


def test_a_drawing_without_latents_of_each_image_is_refused():
    recorder = trajectory.Recorder(16)
    with pytest.raises(DataError, match="takes no steps"), recorder.drawing(Scheduler([], True), [0]):
        pass
    scheduler = Scheduler([torch.zeros(2, 4)], True)
    with pytest.raises(DataError, match="of 2 images, not 3"), recorder.drawing(scheduler, [0, 1, 2]):
        scheduler.step()


def test_few_places_tell_the_distance_of_all():
    rng = np.random.default_rng(0)
    own = rng.standard_normal(16_384)
    other = own + 0.1 * rng.standard_normal(16_384) * rng.uniform(0.2, 2, 16_384)
    chosen = trajectory.places(16_384, 512).numpy()
    all_of_it, few = (np.linalg.norm((other - own)[i]) / np.linalg.norm(own[i]) for i in (slice(None), chosen))
    assert few == pytest.approx(all_of_it, rel=4 * (2 / 512) ** 0.5)


def test_distances_are_relative_by_step_and_have_intervals():
    baseline = np.random.default_rng(1).standard_normal((30, 4, 64)).astype(np.float32)
    scale = np.array([1.1, 1.2, 1.3, 1.4], np.float32)[:, None]
    found = trajectory_distance.score(iter(baseline * scale), iter(baseline))
    assert found.value == pytest.approx(0.25, abs=1e-6) and found.of_items.values.shape == (30,)
    assert [step[0] for step in found.by_step] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-6)
    assert latent_distance.score(iter(baseline * scale), iter(baseline)).value == pytest.approx(0.4, abs=1e-6)
    own = baseline + 0.1 * np.random.default_rng(2).standard_normal(baseline.shape)
    found = trajectory_distance.score(own, baseline)
    assert found.low < found.value < found.high and all(low < value < high for value, low, high in found.by_step)
    assert trajectory_distance.score(baseline, baseline).value == 0


def test_other_steps_have_no_distance_by_step_but_one_at_the_end():
    baseline = np.random.default_rng(1).standard_normal((5, 4, 64))
    with pytest.raises(Undefined, match="trajectories of 2 and of 4 steps"):
        trajectory_distance.score(baseline[:, ::2], baseline)
    assert latent_distance.score(baseline[:, 1::2], baseline).value == 0
    with pytest.raises(Undefined, match="latents of 32 and of 64 values"):
        latent_distance.score(baseline[..., :32], baseline)
    with pytest.raises(Undefined, match="zero behind a step"):
        latent_distance.score(baseline, 0 * baseline)


def test_a_score_of_kept_latents_holds_every_step(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    latents = rng.standard_normal((3, 2, 32)).astype(np.float32)
    for name, factor in (("float", 1), ("w4", 1.5)):
        kept = {seed: factor * latents[seed] for seed in range(3)}
        images.write_images(tmp_path / name, [(pixels, ["a", "b", "c"], [0, 1, 2])], {"method": name}, latents=kept)
        assert not kept  # nothing is held longer than its image
    arguments = ["--images", tmp_path / "w4/manifest.json", "--baseline", tmp_path / "float/manifest.json"]
    output = tmp_path / "score.json"
    score_rule.main(list(map(str, ["--metric", "trajectory-distance", *arguments, "--output", output])))
    found = read_json(output)
    assert found["value"] == pytest.approx(0.5) and found["values"] == pytest.approx([0.5] * 3)
    assert np.array(found["by_step"]) == pytest.approx(np.full((2, 3), 0.5)) and not found["higher_is_better"]


def test_a_sampling_that_keeps_no_latents_is_refused_before_any_job():
    def asks(entries, **sampling):
        entries["metrics"]["latent-distance"] = None
        entries["samplings"]["steps-20"] |= sampling

    with pytest.raises(ConfigurationError, match=r"samplings.steps-20.trajectory: missing, .*write 512"):
        plans.plan_of("embedded", asks)
    kept = plans.plan_of("embedded", lambda entries: asks(entries, trajectory=512))
    cell = {"model": "tiny-sd3", "method": "rtn-w4", "sampling": "steps-20"}
    assert '"trajectory":512' in kept.slice("generate", "sampling", cell)
    plain = plans.plan("embedded")
    assert kept.slice("measure", "sampling", cell) == plain.slice("measure", "sampling", cell)
    assert "trajectory" not in plain.slice("generate", "sampling", cell)  # earlier images stay as they are
