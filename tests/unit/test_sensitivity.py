"""Layers tried alone: scores against a hand calculation, in any job, and an interrupted job that resumes."""

import json

import numpy as np
import pytest
import torch

import sensitivity_job as script
import trials
from quantwatt.allocate.allocation import tried
from quantwatt.allocate.rounding import RoundedLayer
from quantwatt.allocate.sensitivity import Probe
from quantwatt.artifacts import manifest, sensitivity_table
from quantwatt.artifacts.errors import DataError
from quantwatt.config.method_entries import complete_method
from quantwatt.config.mixed_entries import complete_sensitivity
from quantwatt.models import families
from quantwatt.models.sampling import Drawing
from quantwatt.score.metrics.psnr import psnr
from quantwatt.score.metrics.ssim import ssim

CANDIDATES = {
    "w4": {"weights": {"format": "integer", "bits": 4}},
    "w2": {"weights": {"format": "integer", "bits": 2}},
    "a4": {"activations": {"bits": 4, "granularity": "tensor", "dynamic": False, "symmetric": False}},
    "float": {"weights": None, "activations": None},
}
SIZE = 16  # pixels


class Denoiser(torch.nn.Module):
    """Latents [n, 3, 16, 16] and text [n, tokens, 8] to latents, by a convolution, text and an unused layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.to_k = torch.nn.Linear(8, 8)
        self.to_out = torch.nn.Linear(8, 3)
        self.unused = torch.nn.Linear(4, 4)

    def forward(self, sample, timestep, text, return_dict=True):
        hidden = torch.tanh(self.conv_in(sample)) + self.to_k(text).mean(dim=1)[:, :, None, None]
        return (self.to_out(hidden.movedim(1, -1)).movedim(-1, 1) * timestep,)


class Pipeline:
    def __init__(self, denoiser):
        self.denoiser, self.drawn = denoiser, 0

    def to(self, device):
        return self


class Family:
    """Draws in some steps from noise of each image's own seed; the text's first token is the same for all."""

    load_denoiser = staticmethod(lambda settings, location: Denoiser())
    load = staticmethod(lambda settings, location, denoiser=None: Pipeline(denoiser))

    @staticmethod
    @torch.no_grad()
    def generate(pipeline, prompts, seeds, sampling):
        pipeline.drawn += 1
        noise = [torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.stack(noise)
        text = torch.stack([torch.full((4, 8), len(prompt) / 10) for prompt in prompts])
        text[:, 0] = 500
        for step in range(sampling.steps):
            latents = latents - pipeline.denoiser(latents, 1 / (1 + step), text=text, return_dict=False)[0]
        return torch.sigmoid(latents).movedim(1, -1).numpy()


PROMPTS = ["one", "three", "seventeen", "a", "bb"]
LAYERS = {
    "conv_in": {"in_features": 27, "out_features": 8, "kernel_size": [3, 3], "skips": [2, 1]},
    "to_k": {"in_features": 8, "out_features": 8, "first_token": True},
    "to_out": {"in_features": 8, "out_features": 3},
}
DECOUPLED = {"content": "ssim", "quality": "sqnr"}
MODEL = {"layers": LAYERS, "files": {}, "settings": {"family": "sd3"}, "location": "."}


def entry_of(transform=None, **changes):
    entry = {"candidates": CANDIDATES, "prompts": "p.txt", "images": 5, "steps": 3, "batch_size": 2, "jobs": 2}
    found = {"objectives": changes.pop("objectives", list(sensitivity_table.METRICS))}
    found["transforms"] = [{"name": transform}] if transform else []
    return complete_sensitivity(entry | changes, "mine.yaml", "sensitivities.alone") | found


def probe_of(names=tuple(LAYERS), **changes):
    entry = entry_of(**changes)
    layers = tried({name: LAYERS.get(name, {}) for name in names}, entry, "alone")
    probe = Probe(Family, MODEL, entry, layers)
    probe.draw_float(PROMPTS)
    return probe


def row_of(probe, name, candidate, *metrics):
    return probe.row(name, candidate, entry_of()["candidates"][candidate], *metrics)


def test_scores_are_those_of_images_and_of_outputs_on_the_float_trajectory():
    probe = probe_of()
    probe.replace("to_out", {"weights": entry_of()["candidates"]["w2"]["weights"], "activations": None})
    scores = probe.scores()

    denoiser, missed, whole, alike, peaks, squares = Denoiser(), 0.0, 0.0, [], [], []
    rounded = Denoiser()
    rounded.to_out = RoundedLayer(
        rounded.to_out, {"weights": probe.formats["to_out"][0]["weights"], "activations": None}
    )
    for first in (0, 2, 4):
        prompts = PROMPTS[first : first + 2]
        seeds = [1000000 + first + i for i in range(len(prompts))]
        calls = []
        handle = denoiser.register_forward_hook(lambda m, a, k, o, c=calls: c.append((a, k, o[0])), with_kwargs=True)
        truth, found = (Family.generate(Pipeline(d), prompts, seeds, Drawing(steps=3)) for d in (denoiser, rounded))
        handle.remove()
        assert len(calls) == 3
        for args, kwargs, target in calls:
            with torch.no_grad():
                output = rounded(*args, **kwargs)[0]
            missed += (output - target).double().square().sum().item()
            whole += target.double().square().sum().item()
        for a, b in zip((255 * found).round().astype(np.uint8), (255 * truth).round().astype(np.uint8), strict=True):
            alike.append(ssim(a, b))
            peaks.append(psnr(a, b))
            squares.append(((a.astype(float) - b) ** 2).mean() / 255**2)
    assert scores["noise"] == pytest.approx(missed / whole, rel=1e-5)
    assert scores["sqnr"] == pytest.approx(10 * np.log10(whole / missed), abs=1e-4)
    assert scores["ssim"] == pytest.approx(np.mean(alike)) and scores["psnr"] == pytest.approx(np.mean(peaks))
    assert scores["image_error"] == pytest.approx(np.mean(squares)) and scores["image_error"] > 0


def test_a_layer_that_stays_in_16_bit_loses_nothing():
    row = row_of(probe_of(), "to_k", "float")
    assert row["ssim"] == 1 and row["noise"] == 0 and row["sqnr"] == pytest.approx(144.5, abs=0.01)
    assert row["inputs"] == 4 * 8 and row["megabytes"] == 4 * 64 / 1e6


def test_images_are_drawn_only_for_metrics_of_images():
    probe = probe_of()
    assert probe.pipeline.drawn == 3  # the float model's, in three batches
    found, drawn = row_of(probe, "to_out", "w4", {"noise"}), probe.pipeline.drawn
    expected = row_of(probe, "to_out", "w4")
    assert (drawn, probe.pipeline.drawn) == (3, 6)
    assert found == expected | {"ssim": None, "psnr": None, "sqnr": None} and found["noise"] > 0


def test_trying_leaves_the_model_as_it_was():
    probe = probe_of()
    before = probe.scores()
    for name in LAYERS:
        for candidate in CANDIDATES:
            row_of(probe, name, candidate)
    assert probe.scores() == before and before["noise"] == 0


def test_ranges_run_over_batches_and_leave_the_first_token_out():
    plain, bos = probe_of(), probe_of(transform="bos")
    assert plain.ranges["to_k"].high.amax() == 500
    lengths = [max(map(len, batch)) / 10 for batch in (PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:])]
    expected = lengths[0]  # every batch is seen once a step
    for length in [length for length in lengths for _ in range(3)][1:]:
        expected = 0.95 * expected + 0.05 * length
    assert bos.ranges["to_k"].high.amax().item() == pytest.approx(expected, rel=1e-5)
    errors = [row_of(probe, "to_k", "a4")["noise"] for probe in (plain, bos)]
    assert errors[1] < errors[0] / 4


def test_parts_of_a_layer_are_tried_by_themselves():
    probe = probe_of(transform="split-skips")
    assert list(probe.layers) == ["conv_in.0", "conv_in.1", "to_k", "to_out"]
    assert probe.scores()["noise"] < 1e-12
    one, other = (row_of(probe, f"conv_in.{part}", "w2") for part in (0, 1))
    assert 0 < one["noise"] != other["noise"] > 0 and (one["inputs"], other["inputs"]) == (2 * SIZE**2, SIZE**2)


def test_numbers_that_are_none_leave_gaps():
    probe = probe_of()
    with torch.no_grad():
        probe.floats["to_out"].weight.fill_(float("nan"))
    scores = probe.scores()
    assert scores["noise"] is None and scores["sqnr"] is None and 0 <= scores["ssim"] < 1


def test_a_layer_that_no_image_needs_is_named():
    with pytest.raises(DataError, match="layer unused: generating images does not use it; exclude it"):
        probe_of([*LAYERS, "unused"])


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model's manifest, prompts, and how a job of the script is run."""
    monkeypatch.setattr(families, "load_family", lambda name: Family)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS) + "\n")
    manifest.write_json("model.json", MODEL)

    def run(job, output=None, **changes):
        output = tmp_path / (output or f"job-{job}.csv")
        entry = json.dumps(entry_of(**changes))
        asked = ["--model", "model.json", "--sensitivity-name", "alone", "--sensitivity", entry]
        script.main([*asked, "--job", str(job), "--output", str(output)])
        return output

    return run


def test_a_layer_alone_scores_exactly_as_in_the_scattered_run(model):
    tables = [model(job) for job in (0, 1)]
    rows = sensitivity_table.gathered(tables, list(LAYERS), CANDIDATES)
    assert [(row["layer"], row["candidate"]) for row in rows] == [(n, c) for n in LAYERS for c in CANDIDATES]
    for row in rows:
        assert row == row_of(probe_of([row["layer"]]), row["layer"], row["candidate"])
    many = [model(job, f"many-{job}.csv", jobs=5) for job in range(5)]  # two jobs have no layer
    assert sensitivity_table.gathered(many, list(LAYERS), CANDIDATES) == rows


def test_a_layer_is_scored_by_what_methods_choose_by(model, monkeypatch):
    groups = {"conv_in": "quality", "to_k": "content", "to_out": "quality"}
    grouped = {name: layer | {"group": groups[name]} for name, layer in LAYERS.items()}
    whole = sensitivity_table.read(model(0, "whole.csv", jobs=1))
    with pytest.raises(DataError, match="sensitivities.alone: layer conv_in is of no group"):
        model(0, "lost.csv", jobs=1, objectives=[DECOUPLED])
    manifest.write_json("model.json", MODEL | {"layers": grouped})
    drawn, real = [], Family.generate
    monkeypatch.setattr(Family, "generate", lambda *args: drawn.append(args) or real(*args))
    for objectives, metrics, times in (
        ([DECOUPLED], {"content": {"ssim"}, "quality": {"sqnr"}}, 2 + 3),  # images of to_k in w4, w2 and a4 ...
        (["psnr", DECOUPLED], {"content": {"psnr", "ssim"}, "quality": {"psnr", "sqnr"}}, 2 + 3 * 3),
        (["noise", "sqnr"], {group: {"noise", "sqnr"} for group in ("content", "quality")}, 2),
    ):
        drawn.clear()
        rows = sensitivity_table.read(model(0, "own.csv", jobs=1, objectives=objectives))
        assert len(drawn) == 3 * times  # ... and of the float model twice: as it is, and as the candidate "float"
        for row, every in zip(rows, whole, strict=True):
            own = metrics[groups[row["layer"]]]
            assert row == every | {metric: None for metric in sensitivity_table.METRICS if metric not in own}


def test_an_interrupted_job_goes_on_where_it_was(model, monkeypatch, tmp_path):
    whole = sensitivity_table.read(model(0, "whole.csv"))
    tried, real = [], Probe.row

    def row(self, name, candidate, *asked):
        if len(tried) == 3:
            raise KeyboardInterrupt
        tried.append((name, candidate))
        return real(self, name, candidate, *asked)

    monkeypatch.setattr(Probe, "row", row)
    with pytest.raises(KeyboardInterrupt):
        model(0)
    unfinished = tmp_path / "job-0.unfinished"
    assert not (tmp_path / "job-0.csv").exists() and len(unfinished.read_text().splitlines()) == 1 + 3
    unfinished.write_text(unfinished.read_text()[:-20])  # the third row was cut off while it was written
    first, tried = tried[:2], []
    monkeypatch.setattr(Probe, "row", lambda *args: tried.append(args[1:3]) or real(*args))
    assert sensitivity_table.read(model(0)) == whole
    assert first + tried == [(row["layer"], row["candidate"]) for row in whole] and not unfinished.exists()


def test_a_job_starts_anew_with_other_prompts(model, monkeypatch, tmp_path):
    real = Probe.row

    def row(self, name, candidate, *asked):
        if (name, candidate) == ("conv_in", "w2"):
            raise KeyboardInterrupt
        return real(self, name, candidate, *asked)

    monkeypatch.setattr(Probe, "row", row)
    with pytest.raises(KeyboardInterrupt):
        model(0)
    monkeypatch.setattr(Probe, "row", real)
    (tmp_path / "p.txt").write_text("\n".join(f"another {prompt}" for prompt in PROMPTS) + "\n")
    assert sensitivity_table.read(model(0)) == sensitivity_table.read(model(0, "whole.csv"))


def test_another_device_or_library_is_another_question(monkeypatch):
    def key(device="cpu"):
        return script.depends_on(MODEL, entry_of(), [], PROMPTS, device)

    first = key()
    assert key() == first != key("cuda")
    monkeypatch.setattr(script, "provenance", lambda: {"versions": {"torch": "0"}})
    assert key() != first


def test_rows_of_another_question_are_not_taken_over(model, tmp_path):
    row = {"layer": "conv_in", "candidate": "w4"}
    left = sensitivity_table.Unfinished(tmp_path / "job-0.unfinished", "another question")
    left.add(row)
    assert sensitivity_table.Unfinished(tmp_path / "job-0.unfinished", "another question").rows == [row]
    assert len(sensitivity_table.read(model(0))) == 2 * len(CANDIDATES)


def test_a_table_lacks_nothing_and_has_nothing_twice(model):
    tables = [model(job) for job in (0, 1)]
    with pytest.raises(DataError, match="no job has tried layer to_k in w4"):
        sensitivity_table.gathered(tables[:1], list(LAYERS), CANDIDATES)
    with pytest.raises(DataError, match="layer conv_in in w4 stands in another job's table"):
        sensitivity_table.gathered([*tables, tables[0]], list(LAYERS), CANDIDATES)
    with pytest.raises(DataError, match="its columns are not layer, candidate, megabytes"):
        sensitivity_table.read(tables[0], sensitivity_table.COSTS)


def test_choices_are_tried_one_program_after_another():
    programs = [{"candidates": ["w4", "w2"], "objective": "noise", "budget": {"bits": 4}},
                {"candidates": ["a4"], "objective": "noise", "budget": {"bits": 4}}]  # fmt: skip
    method = complete_method({"allocation": {"name": "mixed", "sensitivity": "alone", "programs": programs}}, "f", "m")
    candidates = entry_of()["candidates"]
    method["allocation"]["candidates"] = candidates
    named = [(0, 0, dict.fromkeys(LAYERS, "w2")), (0, 1, dict.fromkeys(LAYERS, "w4")),
             (1, 0, dict.fromkeys(LAYERS, "a4")), (1, 1, dict.fromkeys(LAYERS, "a4") | {"to_k": None})]  # fmt: skip
    choices = [{"program": program, "number": number, "ranges": [layers]} for program, number, layers in named]
    rows = list(trials.try_choices(probe_of(), method, choices))
    assert [(row["program"], row["number"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert rows[1]["image_error"] < rows[0]["image_error"]
    for row, formats in zip(
        rows[1:],
        (
            dict.fromkeys(LAYERS, candidates["w4"]),
            dict.fromkeys(LAYERS, candidates["w4"] | candidates["a4"]),
            {name: candidates["w4"] | (candidates["a4"] if name != "to_k" else {}) for name in LAYERS},
        ),
        strict=True,
    ):
        probe = probe_of()
        for name, own in formats.items():
            probe.replace(name, {"weights": None, "activations": None} | own)
        assert {key: row[key] for key in ("image_error", "psnr")} == {
            key: probe.scores()[key] for key in ("image_error", "psnr")
        }
        assert set(row) == set(sensitivity_table.TRIALS)
    alone = [choice for choice in choices if choice["number"] == 0]
    assert list(trials.try_choices(probe_of(), method, alone)) == []
