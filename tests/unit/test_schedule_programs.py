"""Formats by step chosen by integer programs: sensitivity per range of steps, and budgets of a whole drawing."""

import itertools
import json
import random

import pytest
import torch

import allocate as allocate_rule
import candidates as candidates_rule
import sensitivity as sensitivity_rule
import sensitivity_job
import trials
from quantwatt.allocate import programs
from quantwatt.allocate.allocation import tried
from quantwatt.allocate.integer_program import Infeasible, solve, total
from quantwatt.allocate.ranges import allocate_ranges
from quantwatt.allocate.sensitivity import Probe
from quantwatt.artifacts import csv_files, manifest, sensitivity_table
from quantwatt.config.experiment import ConfigurationError, check_experiment
from quantwatt.config.mixed_entries import complete_sensitivity
from quantwatt.models import families

STEPS = [1, 3, 2]  # of the ranges
CANDIDATES = {
    "w8a8": {"weights": {"format": "integer", "bits": 8}, "activations": {"bits": 8}},
    "w4": {"weights": {"format": "integer", "bits": 4}, "activations": None},
    "float": {"weights": None, "activations": None},
}
LAYERS = {f"layer.{i}": {"in_features": 8 * (i + 1), "out_features": 16} for i in range(2)}
DAMAGE = {"w8a8": 0.01, "w4": 0.1, "float": 0.0}
CALLS = {"baseline": 4.0, "float": 4.0, "w8a8": 1.0, "w4": 2.0}  # joules of a call of the smallest layer
STORED = {"w8a8": 1.0, "w4": 0.5, "float": 4.0}  # megabytes


def experiment_of(budget, ranges=STEPS, **changes):
    program = {"candidates": [*CANDIDATES], "objective": "noise", "budget": budget} | changes.pop("program", {})
    return {
        "models": {"m": {"family": "sd3", "path": "resources/models/tiny-sd3", "text_encoder_3": False}},
        "baseline": "float",
        "sensitivities": {
            "alone": {
                "candidates": CANDIDATES, "prompts": "resources/prompts/shapes-calibration.txt", "steps": 6,
                "ranges": ranges,
            }
        },
        "methods": {
            "float": None,
            "mix": {"allocation": {"name": "mixed", "sensitivity": "alone", "programs": [program]}} | changes,
        },
        "samplings": {"s": {"prompts": "resources/prompts/shapes-test.txt", "images": 1, "steps": 6}},
    }  # fmt: skip


def method_of(budget, **changes):
    return check_experiment(experiment_of(budget, **changes), "mine.yaml")["methods"]["mix"]


def tables():
    """A table per range: the first steps are ten times as sensitive as the last, and layers differ."""
    return [
        {
            name: {
                candidate: {"noise": damage * weight * (i + 1), "inputs": 8.0, "megabytes": STORED[candidate] * (i + 1)}
                for candidate, damage in DAMAGE.items()
            }
            for i, name in enumerate(LAYERS)
        }
        for weight in (10, 2, 1)
    ]


def costs():
    return {
        name: {c: {"joules": call * (i + 1), "milliseconds": None} for c, call in CALLS.items()}
        for i, name in enumerate(LAYERS)
    }


def by_force(cost):
    """(least noise, its cost) of every choice, of those whose cost is known."""
    places = [(r, name) for r in range(len(STEPS)) for name in LAYERS]
    found = tables()
    for names in itertools.product(CANDIDATES, repeat=len(places)):
        choice = dict(zip(places, names, strict=True))
        yield sum(found[r][name][candidate]["noise"] for (r, name), candidate in choice.items()), cost(choice)


def joules(choice):
    return sum(STEPS[r] * costs()[name][candidate]["joules"] for (r, name), candidate in choice.items())


def megabytes(choice):
    kept = {(name, candidate) for (_, name), candidate in choice.items()}
    return sum(tables()[0][name][candidate]["megabytes"] for name, candidate in kept)


@pytest.mark.parametrize(
    ("unit", "cost", "budgets"), [("joules", joules, (20, 33, 60)), ("megabytes", megabytes, (3, 6, 14))]
)
def test_a_budget_of_the_whole_drawing_is_spent_best(unit, cost, budgets):
    every = list(by_force(cost))
    for budget in budgets:
        (choice,) = programs.solve(LAYERS, tables(), costs(), method_of({unit: budget}), "mix", "float32")
        chosen = {(r, name): c for r, layers in enumerate(choice["ranges"]) for name, c in layers.items()}
        assert cost(chosen) == pytest.approx(choice["cost"]) and choice["cost"] <= budget + 1e-6
        noise = sum(tables()[r][name][c]["noise"] for (r, name), c in chosen.items())
        assert noise == pytest.approx(min(noise for noise, spent in every if spent <= budget + 1e-9), abs=1e-6)


def test_the_baseline_of_a_budget_is_stored_once_and_computed_in_every_step():
    (choice,) = programs.solve(
        LAYERS, tables(), costs(), method_of({"joules": 0.5, "of": "baseline"}), "mix", "float32"
    )  # fmt: skip
    assert choice["target"] == pytest.approx(0.5 * 6 * 4 * (1 + 2))
    (choice,) = programs.solve(
        LAYERS, tables(), None, method_of({"megabytes": 3000, "of": "baseline"}), "mix", "float32"
    )  # fmt: skip
    weights = sum(layer["in_features"] * layer["out_features"] for layer in LAYERS.values())
    assert choice["target"] == pytest.approx(3000 * weights * 4 / 1e6)
    with pytest.raises(programs.BudgetInfeasible) as caught:
        programs.solve(LAYERS, tables(), costs(), method_of({"joules": 5}), "mix", "float32")
    assert "for 2 layers in 3 ranges of steps stays within 5 J; the nearest feasible budget is 18 J" in str(
        caught.value
    )


def test_average_bits_are_over_the_steps():
    program = {"candidates": ["w8", "w4"], "targets": 1, "tolerance": 0.3, "below": 0}
    raw = experiment_of({"bits": 5}, program=program)
    raw["sensitivities"]["alone"]["candidates"] = {
        f"w{bits}": {"weights": {"format": "integer", "bits": bits}} for bits in (8, 4)
    }  # fmt: skip
    method = check_experiment(raw, "mine.yaml")["methods"]["mix"]
    found = tables()
    for table in found:
        for rows in table.values():
            rows["w8"] = rows["w8a8"]
    (choice,) = programs.solve(LAYERS, found, None, method, "mix", "float32")
    sizes = {name: layer["in_features"] for name, layer in LAYERS.items()}
    bits = sum(
        STEPS[r] * sizes[name] * int(c[1]) for r, layers in enumerate(choice["ranges"]) for name, c in layers.items()
    )
    assert choice["cost"] == pytest.approx(bits / 6 / sum(sizes.values())) and abs(choice["cost"] - 5) <= 0.3


@pytest.mark.parametrize("seed", range(10))
def test_charges_are_paid_once(seed):
    draw = random.Random(seed)
    names, places = ("a", "b", "c"), [(layer, r) for layer in "xy" for r in range(3)]
    prices = {(layer, name): draw.uniform(0, 4) for layer in "xy" for name in names}
    scores = {place: {name: draw.uniform(-2, 2) for name in names} for place in places}
    charged = {(layer, r): {name: (layer, name) for name in names} for layer, r in places}
    priced = {(layer, r): {name: prices[layer, name] for name in names} for layer, r in places}
    every = [dict(zip(places, chosen, strict=True)) for chosen in itertools.product(names, repeat=len(places))]
    sums = sorted(total(priced, choice, charged) for choice in every)
    for high in (sums[0], sums[len(sums) // 4], sums[-1]):
        found = solve(scores, priced, high + 1e-9, charges=charged)
        assert total(priced, found, charged) <= high + 1e-4
        best = max(total(scores, choice) for choice in every if total(priced, choice, charged) <= high + 1e-9)
        assert total(scores, found) == pytest.approx(best, abs=1e-4)
    with pytest.raises(Infeasible) as caught:
        solve(scores, priced, sums[0] - 0.01, charges=charged)
    assert caught.value.nearest == pytest.approx(sums[0], abs=1e-6)


class Denoiser(torch.nn.Module):
    """Two linear layers, the second on what the first gives."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, sample, timestep, return_dict=True):
        return (self.last(torch.tanh(self.first(sample))) * (1 + timestep / 1000),)


class Scheduler:
    """Euler's steps, as diffusers' schedulers plan and do them."""

    def set_timesteps(self, num_inference_steps):
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.linspace(1000, 100, num_inference_steps)

    def step(self, velocity, timestep, latents):
        return latents - velocity / self.num_inference_steps


class Pipeline:
    def __init__(self, denoiser):
        self.denoiser, self.scheduler = denoiser, Scheduler()

    def to(self, device):
        return self


class Family:
    """Draws 8x1 pixels; each half of a batch is a call of its own, as with guidance in two calls."""

    load_denoiser = staticmethod(lambda settings, location: Denoiser())
    load = staticmethod(lambda settings, location, denoiser=None: Pipeline(denoiser))

    @staticmethod
    @torch.no_grad()
    def generate(pipeline, prompts, seeds, sampling):
        latents = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        pipeline.scheduler.set_timesteps(sampling.steps)
        for timestep in pipeline.scheduler.timesteps:
            velocity = torch.cat([pipeline.denoiser(part, timestep)[0] for part in latents.chunk(2)])
            latents = pipeline.scheduler.step(velocity, timestep, latents)
        return torch.sigmoid(latents)[:, :, None, None].expand(-1, -1, 1, 3).numpy()


PROBED = {"first": {"in_features": 8, "out_features": 8}, "last": {"in_features": 8, "out_features": 8}}


def entry_of(**changes):
    entry = {"candidates": CANDIDATES, "prompts": "p.txt", "images": 4, "steps": 6, "batch_size": 4, "jobs": 2}
    found = {"objectives": changes.pop("objectives", ["psnr", "noise"])}
    return complete_sensitivity(entry | changes, "mine.yaml", "sensitivities.alone") | found


def probe_of(**changes):
    entry = entry_of(**changes)
    model = {"layers": PROBED, "files": {}, "settings": {"family": "sd3"}, "location": "."}
    probe = Probe(Family, model, entry, tried(PROBED, entry, "alone"))
    probe.draw_float(["a", "b", "c", "d"])
    return probe, entry["candidates"]


def test_noise_of_ranges_adds_up_to_that_of_all_steps():
    (whole, formats), (probe, _) = probe_of(), probe_of(ranges=STEPS)
    rows = [probe.row("first", "w4", formats["w4"], ("noise", "psnr"), span) for span in range(3)]
    every = whole.row("first", "w4", formats["w4"], ("noise", "psnr"))
    assert sum(row["noise"] for row in rows) == pytest.approx(every["noise"], rel=1e-6)
    assert [row["range"] for row in rows] == [0, 1, 2] and len({row["psnr"] for row in rows}) == 3
    assert probe.scores(("noise",))["noise"] == 0  # the model is as it was
    for span in range(3):  # in all ranges at once it is the layer in all steps
        probe.replace("first", {"weights": None, "activations": None, **formats["w4"]}, span)
    assert probe.scores(("psnr",))["psnr"] == every["psnr"]


def test_images_of_a_range_are_those_of_switching_by_hand():
    probe, formats = probe_of(ranges=STEPS)
    probe.replace("last", {"weights": None, "activations": None, **formats["w4"]}, 1)
    images = Family.generate(probe.pipeline, ["a"] * 4, [5, 6, 7, 8], probe.sampling)
    rounded, plain = probe.denoiser.last.variants[1], Pipeline(Denoiser())
    whole, calls = plain.denoiser.last, 0

    def switched(module, args, output):
        nonlocal calls
        step, calls = calls // 2, calls + 1  # two calls a step
        return rounded(*args) if 1 <= step < 4 else output

    whole.register_forward_hook(switched)
    assert (Family.generate(plain, ["a"] * 4, [5, 6, 7, 8], probe.sampling) == images).all()


def test_jobs_programs_trials_and_the_allocation_have_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "load_family", lambda name: Family)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a\nb\nc\nd\n")
    model = {"layers": PROBED, "files": {}, "settings": {"family": "sd3", "dtype": "float32"}, "location": "."}
    manifest.write_json("model.json", model)
    weights = {name: {"weights": formats["weights"]} for name, formats in CANDIDATES.items() if formats["weights"]}
    entry = entry_of(ranges=STEPS, candidates=weights)
    asked = ["--model", "model.json", "--sensitivity-name", "alone", "--sensitivity", json.dumps(entry)]
    for job in ("0", "1"):
        sensitivity_job.main([*asked, "--job", job, "--output", f"jobs/job-{job}.csv"])
    sensitivity_rule.main([*asked, "--jobs", "jobs", "--output", "table.csv"])
    rows = sensitivity_table.read("table.csv")
    assert [(row["layer"], row["candidate"], row["range"]) for row in rows] == [
        (name, candidate, span) for name in PROBED for candidate in weights for span in range(3)
    ]
    raw = experiment_of({"bits": 6}, program={"candidates": [*weights], "tolerance": 0.4, "targets": 3, "below": 1})
    raw["sensitivities"]["alone"]["candidates"] = weights
    method = json.dumps(check_experiment(raw, "mine.yaml")["methods"]["mix"])
    named = ["--model", "model.json", "--method-name", "mix", "--method", method]
    candidates_rule.main([*named, "--sensitivity", "table.csv", "--output", "c.json", "--table", "c.csv"])
    choices = manifest.read_json("c.json")
    assert len(choices) > 1 and all(len(choice["ranges"]) == 3 for choice in choices)
    counted = (tmp_path / "c.csv").read_text().splitlines()
    assert len(counted) == 1 + len(choices) and counted[1].count(";") == 2
    trials.main(
        ["--model", "model.json", "--method", method, "--sensitivity", json.dumps(entry), "--candidates", "c.json",
         "--output", "t.csv"]
    )  # fmt: skip
    errors = [row["image_error"] for row in sensitivity_table.read("t.csv", sensitivity_table.TRIALS)]
    allocate_rule.main([*named, "--candidates", "c.json", "--trials", "t.csv", "--output", "allocation.json"])
    best = choices[errors.index(min(errors))]["ranges"]
    ranges = manifest.read_json("allocation.json")
    assert [part["steps"] for part in ranges] == STEPS
    for part, chosen in zip(ranges, best, strict=True):
        assert {name: f["weights"]["bits"] for name, f in part["layers"].items()} == {
            name: weights[candidate]["weights"]["bits"] for name, candidate in chosen.items()
        }


def test_unquantized_ends_may_surround_what_the_programs_chose():
    method = method_of({"joules": 60}, ranges=None, schedule={"first": 1})
    layers = dict.fromkeys(LAYERS, "w4") | {"layer.1": "float"}
    solved = [{"program": 0, "number": 0, "ranges": [layers]}]
    found = allocate_ranges(LAYERS, method, "mix", solved=solved)
    assert [part["steps"] for part in found] == [1, None] and found[0]["layers"] == {}
    assert set(found[1]["layers"]) == {"layer.0"}


def test_a_table_of_one_range_is_as_before(tmp_path):
    row = {"layer": "a", "candidate": "w4", "inputs": 1.0, "megabytes": 2.0} | dict.fromkeys(
        sensitivity_table.METRICS
    )  # fmt: skip
    csv_files.write(tmp_path / "t.csv", sensitivity_table.COLUMNS, [row])
    (table,) = sensitivity_table.by_range(sensitivity_table.read(tmp_path / "t.csv"))
    assert table == {"a": {"w4": row | {"range": None}}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ranges": [1, 2]}, "sensitivities.alone.ranges: they take 3 steps, and it has 6."),
        ({"ranges": 7}, "sensitivities.alone.ranges: 6 steps are no 7 ranges; set fewer."),
        ({"schedule": {"first": 1}},
         "methods.mix.schedule: the programs choose formats for the ranges of sensitivities.alone; drop the key, or "
         "its ranges."),
        ({"ranges": None, "schedule": [{"steps": 1, "weights": {"format": "nf4"}}, {}]},
         "methods.mix.schedule.0.weights: the programs of the allocation decide on formats; leave it out, or set "
         "weights: null for unquantized steps."),
    ],
)  # fmt: skip
def test_ranges_that_do_not_fit_are_refused(changes, sentence):
    with pytest.raises(ConfigurationError) as caught:
        method_of({"joules": 60}, **changes)
    assert str(caught.value) == f"mine.yaml: {sentence}"


def test_ranges_of_a_sensitivity_are_a_methods_schedule():
    assert method_of({"joules": 60}, ranges=3)["schedule"] == [{"steps": 2}] * 3
    raw = experiment_of({"joules": 60})
    raw["samplings"]["s"]["steps"] = 8
    with pytest.raises(ConfigurationError, match="methods.mix.schedule: its ranges take 6 steps, and a drawing has 8"):
        check_experiment(raw, "mine.yaml")
