"""Configuration keys and plugins that each rule reads, and the documentation's table of reruns against both."""

import functools
import itertools
import json
import re
from pathlib import Path

import pytest
from plans import plan, plan_of, raw, setting

from quantwatt.artifacts import layout
from quantwatt.config import inputs, methods, slices, targets
from quantwatt.config.schemas import ConfigurationError
from quantwatt.inference.kernel_choice import KERNELS
from quantwatt.registry import PACKAGES

ROOT = Path(__file__).parents[2]


OF_THE_OTHER_KIND = {"image": ("predict",), "text": ("generate", "generate_part", "gather_images", "features")}


def jobs(plan):
    """[(rule, wildcards)] of all jobs of an experiment that read entries or load plugins."""
    entries = plan.experiment
    known = {
        "model": list(entries["models"]),
        "method": list(entries["methods"]),
        "sampling": list(entries["samplings"]),
        "metric": list(entries["metrics"]),
        "sensitivity": list(entries["sensitivities"]),
        "extractor": ["judge", *(["classifier"] if entries["classifier"] else [])],
        "figure": list(plan.figures),
        "job": ["0"],
        "first": ["00000"],
        "backend": ["auto-gptq"],
        "component": sorted({name for name, _ in plan.components}),
        "hash": [value for _, value in plan.components],
    }
    missing = {kind for kind in ("calibration", "reference", "study") if entries[kind] is None}
    without = {"calibrate": "calibration", "export_layers": "calibration", "reference": "reference", "study": "study"}
    missing |= {key for key in targets.KEYS.values() if plan.config[key] is None}
    without |= targets.KEYS | {"calibrate_component": "calibration"}
    found = []
    for rule in layout.JOBS:
        names = re.findall(r"\{(\w+)\}", layout.JOBS[rule])
        if without.get(rule) in missing or rule in ("fetch", "dataset", *OF_THE_OTHER_KIND[entries["kind"]]):
            continue
        for values in itertools.product(*(known[name] for name in names)):
            job = dict(zip(names, values, strict=True))
            if "hash" in job and (job["component"], job["hash"]) not in plan.components:
                continue
            method = entries["methods"].get(job.get("method"))
            if rule in ("candidates", "trials") and not methods.is_mixed(method):
                continue
            if rule == "solve_layers" and not methods.is_external(method):
                continue
            if rule in ("fetch_checkpoint", "import_checkpoint") and not methods.is_foreign(method):
                continue
            shared = plan.weights_of.get(job.get("method"))
            if (rule == "quantize" and shared) or (rule == "share_weights" and not shared):
                continue
            if rule == "quantize_apart" and shared != ("shared", job["method"]):
                continue
            found.append((rule, job))
    return found


def read(plan):
    """{(rule, wildcards): its watched parameters and plugins} of all jobs."""
    return {
        (rule, json.dumps(names)): (
            [
                plan.slice(rule, parameter, names)
                for parameter in slices.READS.get(rule, {})
                if parameter not in slices.unwatched(rule)
            ],
            plan.plugins(rule, names),
        )
        for rule, names in jobs(plan)
    }


def changed(name, change):
    """Rules of which some job reads something else after a change of an experiment."""
    before, after = read(plan(name)), read(plan_of(name, change))
    return {rule for rule, names in before.keys() & after.keys() if before[rule, names] != after[rule, names]}


# The tables


def test_the_tables_name_rules_and_kinds_of_plugins():
    assert slices.READS.keys() | slices.PLUGINS.keys() <= layout.JOBS.keys()
    assert {kind for kinds in slices.PLUGINS.values() for kind in kinds} == PACKAGES.keys() - {"exports"}


@pytest.mark.parametrize("rule", layout.JOBS)
def test_every_rule_runs_a_script_that_is_there(rule):
    assert (ROOT / "workflow_scripts" / slices.script(rule)).is_file()


def test_a_command_ends_in_the_rules_log():
    command = slices.run("generate_part", "--part 0 8", "--threads {threads}")
    assert command == "python workflow_scripts/generate.py --part 0 8 --threads {threads} > {log} 2>&1"
    assert slices.run("solve_layers", python="{params.python}").startswith("{params.python} workflow_scripts/solve_")


def test_a_rules_command_takes_all_that_it_reads():
    """What no command takes would rerun a job that it cannot change."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    rules = dict(re.findall(r"^rule (\w+):\n((?:    .*\n|\n)*)", text, flags=re.M))
    for rule, reads in slices.READS.items():
        body = rules.get(rule) or rules[slices.script(rule).removesuffix(".py")]
        taken = set(re.findall(r"\{params\.(\w+):q\}", body))
        assert taken == set(reads), rule


# Slices


METHOD = {"weights", "activations", "transforms", "allocation"}
DRAWN = {"prompts", "steps", "guidance", "height", "width", "batch_size", "seed", "negative_prompt", "cycle"}
FIRST_BLOCK = {"name": "first-block", "threshold": 0.2}
DRAWN_ITS_OWN_WAY = {"cache": FIRST_BLOCK, "steps": 10}  # the method "cached" of the experiment "drawn"
GGUF = {"loader": "gguf", "path": "resources/models"}
HELD = [  # (experiment, rule, parameter, wildcards, keys that it holds, some that it must not)
    ("embedded", "model", "settings", {"model": "tiny-sd3"}, {"family", "path", "dtype"}, {"methods"}),
    ("embedded", "calibrate", "settings", {"model": "tiny-sd3"}, {"prompts", "timesteps"}, {"device", "meter"}),
    ("embedded", "quantize", "method", {"method": "gptq-w4a8"}, METHOD | {"solver", "dtype", "compile"}, {"meter"}),
    ("embedded", "allocate", "method", {"method": "gptq-w4a8"}, METHOD | {"solver"}, {"dtype", "compile"}),
    ("drawn", "quantize", "method", {"method": "cached"}, METHOD | {"solver"}, {"cache", "steps"}),
    ("drawn", "quantize_apart", "method", {"method": "cached"}, METHOD | {"solver"}, {"cache", "steps"}),
    ("drawn", "share_weights", "method", {"method": "cached"}, METHOD | {"cache", "steps"}, {"meter"}),
    ("foreign", "fetch_checkpoint", "settings", {"method": "gguf"}, {"loader", "path"}, {"weights"}),
    ("foreign", "import_checkpoint", "method", {"method": "gguf"}, METHOD | {"checkpoint"}, {"meter"}),
    ("embedded", "generate", "sampling", {"model": "tiny-sd3", "sampling": "steps-20"}, DRAWN | {"images"}, set()),
    ("embedded", "generate_part", "sampling", {"model": "tiny-sd3", "sampling": "steps-20"}, DRAWN, {"images"}),
    ("embedded", "measure", "sampling", {"model": "tiny-sd3", "sampling": "steps-20"}, DRAWN, {"images"}),
    ("embedded", "measure", "measuring", {}, {"meter", "blocks", "block_s", "idle_w"}, {"samplings", "methods"}),
    ("embedded-mixdq", "layer_costs", "measuring", {}, {"meter", "idle_w", "warmup_s"}, {"precision", "limit_s"}),
    ("embedded", "score", "settings", {"metric": "fid"}, {"resamples"}, {"metric"}),
    ("embedded", "reference", "settings", {}, {"images", "seed"}, {"metrics"}),
    ("embedded", "fetch_weights", "settings", {"extractor": "judge"}, {"model"}, {"path"}),
    ("embedded-digits", "fetch_weights", "settings", {"extractor": "classifier"}, {"path"}, {"model"}),
    ("embedded", "fetch_weights", "settings", {"extractor": "inception"}, {"weights"}, {"model"}),
    ("embedded", "tables", "grid", {},
     {"cells", "metrics", "baseline", "methods", "samplings", "sensitivities", "margin"}, {"judge"}),
    ("embedded", "recommend", "limits", {}, {"max_energy_j", "min_quality"}, {"margin"}),
    ("embedded", "figure", "grid", {}, {"cells", "metrics", "baseline"}, {"methods", "samplings"}),
    ("embedded-mixdq", "sensitivity_job", "sensitivity", {"sensitivity": "one-step"},
     {"candidates", "transforms", "prompts", "images", "jobs", "objectives"}, {"costs"}),
    ("embedded-mixdq", "layer_costs", "sensitivity", {"sensitivity": "measured"},
     {"candidates", "costs", "transforms", "prompts", "steps"}, {"jobs", "images", "batch_size", "objectives"}),
    ("embedded-mixdq", "layer_costs", "measuring", {}, {"images_per_batch", "warmup_s", "meter"}, {"blocks"}),
    ("embedded-mixdq", "candidates", "method", {"method": "mixdq-w4a8"}, METHOD, {"solver", "dtype", "compile"}),
    ("embedded-mixdq", "trials", "sensitivity", {"method": "mixdq-w4a8"},
     {"prompts", "images", "batch_size", "steps"}, {"candidates", "exclude", "jobs", "costs", "objectives"}),
    ("embedded-methods", "solve_layers", "solver", {"method": "auto-gptq-w4g128"}, {"name"}, METHOD),
    ("embedded-text", "predict", "sampling", {"model": "tiny-gpt2", "sampling": "held-out"}, {"texts"}, {"steps"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rule", "parameter", "names", "held", "absent"), HELD)
def test_what_a_slice_holds(name, rule, parameter, names, held, absent):
    changes = {"drawn": ("methods/cached", DRAWN_ITS_OWN_WAY), "foreign": ("methods/gguf", {"checkpoint": GGUF})}
    own = plan_of("embedded", setting(*changes[name])) if name in changes else plan(name)
    found = json.loads(own.slice(rule, parameter, names))
    assert held <= found.keys() and not absent & found.keys()


OF_COMPONENTS = ("calibrate_component", "allocate_component", "quantize_component")


def test_what_slices_of_components_hold():
    own = plan("embedded-components")
    name, value = next(key for key, entry in own.components.items() if entry["solver"]["name"] == "gptq")
    names = {"model": "tiny-sd3", "component": name, "hash": value}
    allocated, quantized = (json.loads(own.slice(rule, "method", names)) for rule in OF_COMPONENTS[1:])
    assert allocated.keys() == METHOD | {"solver"} and allocated["solver"] == {"name": "gptq"}
    assert quantized.keys() == METHOD | {"solver", "dtype"} and quantized["solver"].keys() > {"name", "damping"}


def test_every_slice_is_looked_at():
    tried = {(rule, parameter) for _, rule, parameter, *_ in HELD}
    alike = {("sensitivity", "sensitivity"), ("calibrate", "metering"), ("quantize", "metering"), ("trials", "method"),
             ("quantize_apart", "metering"), ("report", "grid"), ("study", "grid"), ("gate", "policy")}  # fmt: skip
    alike |= {("fetch", "sha256"), ("report", "protocol")}  # of files fetched already; a whole entry
    alike |= {(rule, own) for rule in OF_COMPONENTS for own in slices.READS[rule]}
    assert tried | alike == {(rule, own) for rule, reads in slices.READS.items() for own in reads}
    reads = slices.READS
    assert (
        reads["sensitivity"] == reads["sensitivity_job"]
        and reads["report"].items() > reads["study"].items() == reads["figure"].items()
    )
    assert reads["trials"]["method"] == reads["candidates"]["method"]
    assert reads["quantize_apart"] == reads["quantize"] and reads["calibrate_component"] == reads["calibrate"]


def test_an_allocation_reads_of_a_solver_its_name_alone():
    found = json.loads(plan("embedded").slice("allocate", "method", {"method": "gptq-w4a8"}))
    assert found["solver"] == {"name": "gptq"}
    assert json.loads(plan("embedded").slice("allocate", "method", {"method": "float32"}))["solver"] is None


def test_a_slice_is_one_text_for_equal_settings():
    def reordered(entries):
        entries["models"]["tiny-sd3"] = dict(reversed(entries["models"]["tiny-sd3"].items()))
        entries["methods"]["gptq-w4a8"] = dict(reversed(entries["methods"]["gptq-w4a8"].items()))
        entries["samplings"]["steps-20"] = dict(reversed(entries["samplings"]["steps-20"].items()))

    assert changed("embedded", reordered) == set()


def test_a_model_reads_its_own_texts():
    names = {"model": "tiny-gpt2", "sampling": "held-out"}
    asked = raw("embedded-text")["samplings"]["held-out"]["texts"]
    assert plan("embedded-text").texts("predict", names) == asked["tiny-gpt2"]
    assert json.loads(plan("embedded-text").slice("measure", "sampling", names))["texts"] == asked["tiny-gpt2"]


@pytest.mark.parametrize(
    ("name", "rule", "names", "file"),
    [
        ("embedded", "generate", {"model": "tiny-sd3", "sampling": "steps-20"}, "resources/prompts/shapes-test.txt"),
        ("embedded", "calibrate", {"model": "tiny-sd3"}, "resources/prompts/shapes-calibration.txt"),
        ("embedded-mixdq", "layer_costs", {"sensitivity": "measured"}, "resources/prompts/shapes-calibration.txt"),
        ("embedded-mixdq", "trials", {"method": "mixdq-w4a8"}, "resources/prompts/shapes-calibration.txt"),
    ],
)
def test_the_file_of_prompts_is_that_of_the_entry_that_a_rule_reads(name, rule, names, file):
    assert plan(name).texts(rule, names) == file


def test_another_meter_reruns_what_measures_alone():
    before, after = read(plan("embedded")), read(plan_of("embedded", meter="none"))
    assert {rule for rule, names in before if before[rule, names] != after[rule, names]} == {"measure"}
    metering = [plan_of("embedded", meter=meter).slice("quantize", "metering", {}) for meter in ("estimate", "none")]
    assert metering[0] != metering[1] and slices.unwatched("quantize") == ["metering"]


@pytest.mark.parametrize(
    ("name", "rule", "parameter", "names", "words"),
    [
        ("embedded", "model", "settings", {"model": "tiny-sd4"}, "no model 'tiny-sd4'.*did you mean 'tiny-sd3'"),
        ("embedded", "quantize", "method", {"method": "gptq-w4a"}, "no method 'gptq-w4a'.*did you mean 'gptq-w4a8'"),
        ("embedded", "measure", "sampling", {"model": "tiny-sd3", "sampling": "step-20"}, "did you mean 'steps-20'"),
        ("embedded", "score", "settings", {"metric": "fidd"}, "no metric 'fidd'.*did you mean 'fid'"),
        (
            "embedded-mixdq",
            "sensitivity",
            "sensitivity",
            {"sensitivity": "one-stp"},
            "no sensitivity 'one-stp'.*one-step",
        ),
        ("embedded-mixdq", "trials", "sensitivity", {"method": "bos-w8a8"}, "methods.bos-w8a8: it chooses by no sensi"),
        ("embedded", "fetch_weights", "settings", {"extractor": "juge"}, "no extractor 'juge'.*did you mean 'judge'"),
        ("embedded-text", "reference", "settings", {}, "embedded-text.yaml: reference: missing"),
        ("embedded-energy", "calibrate", "settings", {"model": "tiny-sd3"}, "calibration: missing"),
    ],
)
def test_wildcards_that_name_nothing(name, rule, parameter, names, words):
    with pytest.raises(ConfigurationError, match=words):
        plan(name).slice(rule, parameter, names)


# Plugins


CELL = {"model": "tiny-sd3", "method": "gptq-w4a8", "sampling": "steps-20"}
SDXL = {"model": "tiny-sdxl", "method": "mixdq-w4a8"}


def kernels(device, name):
    return [f"kernels/{own}" for own in KERNELS[device][name]]


@pytest.mark.parametrize(
    ("name", "rule", "names", "modules"),
    [
        ("embedded", "model", CELL, {"families/sd3"}),
        ("embedded", "allocate", CELL, {"allocations/uniform"}),
        ("embedded", "allocate", CELL | {"method": "float32"}, set()),
        ("embedded", "quantize", CELL, {"families/sd3", "formats/integer", "solvers/gptq"}),
        ("embedded", "quantize", CELL | {"method": "float32"}, {"families/sd3"}),
        ("embedded", "generate", CELL, {"families/sd3", "formats/integer", *kernels("cpu", "integer")}),
        ("embedded", "score", {"metric": "clip-score"}, {"metrics/clip-score"}),
        ("embedded", "features", {"extractor": "judge"}, {"extractors/judge"}),
        ("embedded", "figure", {"figure": "seeds"}, {"figures/seeds"}),
        ("embedded", "tables", {}, set()),
        ("embedded-mixdq", "allocate", {"method": "mixdq-w4a8"}, {"allocations/mixed"}),
        ("embedded-mixdq", "trials", SDXL, {"families/sdxl", "formats/integer"}),
        ("embedded-mixdq", "sensitivity_job", {"model": "tiny-sdxl", "sensitivity": "measured"},
         {"families/sdxl", "formats/integer"}),
        ("embedded-mixdq", "quantize", SDXL,
         {"families/sdxl", "formats/integer", "transforms/bos", "solvers/rtn"}),
        ("embedded-methods", "solve_layers", {"method": "auto-gptq-w4g128"}, {"formats/integer", "solvers/auto-gptq"}),
        ("sd35-large-energy", "study", {}, {"studies/sd35-large-energy"}),
    ],
)  # fmt: skip
def test_the_plugins_of_a_job(name, rule, names, modules):
    assert set(plan(name).plugins(rule, names)) == modules


def test_a_job_loads_the_formats_of_inputs_and_of_overrides():
    def change(entries):
        overrides = {"*.norm1*": {"weights": {"format": "float8"}}}
        floats = {"weights": {"format": "mxfp4"}, "activations": {"format": "nvfp4"}}
        entries["methods"]["floats"] = floats | {"allocation": {"name": "uniform", "overrides": overrides}}

    found = set(plan_of("embedded", change).plugins("generate", CELL | {"method": "floats"}))
    assert found == {"families/sd3", "kernels/unpacked", *(f"formats/{name}" for name in ("mxfp4", "nvfp4", "float8"))}


@pytest.mark.parametrize(
    ("meter", "modules"), [("estimate", {"estimate", "none"}), ("none", {"none"}), ("nvml", {"nvml", "rapl", "none"})]
)
def test_measuring_loads_what_stands_in_for_a_meter(meter, modules):
    found = plan_of("embedded", device="cuda", meter=meter).plugins("measure", CELL)
    assert {name for name in found if name.startswith("meters/")} == {f"meters/{name}" for name in modules}


def test_kernels_are_those_of_the_device():
    found = plan_of("embedded-energy", device="cuda").plugins("generate", CELL | {"method": "nf4"})
    assert [name for name in found if name.startswith("kernels/")] == kernels("cuda", "nf4")


def test_every_figure_is_a_plugin_and_every_plugin_a_figure():
    folder = ROOT / "workflow_scripts/quantwatt" / PACKAGES["figures"].replace(".", "/")
    assert layout.FIGURES.keys() == {path.stem for path in folder.glob("*.py")} - {"__init__"}


# docs/reruns.md


STAGES = {  # words of the table: the rules that they stand for
    r"quantize\b": {"quantize", "quantize_apart", "quantize_component"},
    r"linked": {"share_weights"},
    r"generate\b": {"generate", "generate_part", "gather_images", "predict"},
    r"measure\b|measurements": {"measure"},
    r"costs of layers": {"layer_costs"},
    r"scores?\b|features|FID": {"features", "reference_features", "score"},
    r"tables|recommendation|verdict|comparison": {"tables", "study", "recommend", "gate", "compare"},
    r"figures": {"figure"},
    r"report\b": {"report"},
    r"integer programs": {"candidates"},
    r"trials": {"trials"},
    r"allocation": {"allocate", "allocate_component"},
    r"export": {"export_layers"},
    r"solving": {"solve_layers"},
    r"jobs of its sensitivity": {"sensitivity_job", "sensitivity"},
    r"fetch_weights": {"fetch_weights"},
}
BESIDE = {  # edges of the graph of rules beside those that docs/code-map.md draws, of experiments of other kinds
    ("sensitivity_job", "sensitivity"), ("sensitivity", "candidates"), ("layer_costs", "candidates"),
    ("candidates", "trials"), ("candidates", "allocate"), ("trials", "allocate"),
    ("export_layers", "solve_layers"), ("allocate", "solve_layers"), ("solve_layers", "quantize"),
    ("allocate", "quantize_apart"), ("solve_layers", "quantize_apart"), ("quantize", "share_weights"),
    ("quantize_apart", "share_weights"), ("share_weights", "generate"), ("share_weights", "measure"),
    ("share_weights", "generate_part"), ("allocate_component", "quantize_component"),
    ("calibrate_component", "quantize_component"), ("quantize_component", "share_weights"),
    ("quantize", "generate_part"), ("quantize", "predict"), ("generate_part", "gather_images"),
    ("gather_images", "features"), ("gather_images", "score"), ("predict", "score"), ("score", "study"),
}  # fmt: skip


def rows():
    """{change: what it reruns, in words} of the documentation's table."""
    table = re.search(r"\| change \| reruns \|\n\|.*\|\n((?:\|.*\n)+)", (ROOT / "docs/reruns.md").read_text())[1]
    return dict(line.strip("| ").split(" | ") for line in table.splitlines())


def graph():
    """Edges (rule, rule that reads what it makes)."""
    shown = (ROOT / "docs/code-map.md").read_text()
    block = re.search(r"```mermaid\nflowchart LR\n(.*?)```", shown, flags=re.DOTALL)[1]
    edges = set(BESIDE)
    for line in block.strip().splitlines():
        groups = [group.split(" & ") for group in line.strip().split(" --> ")]
        edges |= {(a, b) for left, right in itertools.pairwise(groups) for a in left for b in right}
    return edges


def followed(rules, name):
    """Rules with all that follow them, of those that an experiment has."""
    present = {rule for rule, _ in jobs(plan(name))}
    edges, found = graph(), set(rules)
    while new := {b for a, b in edges if a in found and b in present} - found:
        found |= new
    return found


def stages(rules):
    """The words of the table that stand for some of the rules."""
    return {words for words, own in STAGES.items() if own & rules}


def told(words, name):
    """The same of what the table says."""
    found = {own for own in STAGES if re.search(own, words)}
    if "what follows" not in words:
        return found
    return stages(followed(set().union(*(STAGES[own] for own in found)), name))


def without(path):
    """A change of an experiment that leaves an entry out."""
    *parents, last = path.split("/")
    return lambda entries: functools.reduce(dict.__getitem__, parents, entries).pop(last)


SOLVER = "one method's solver settings, or its solver's module"
METRIC = "a metric's settings or module"
CHANNEL = {"format": "integer", "bits": 8, "granularity": "channel"}
SETTINGS = [  # (change in the table, experiment, how it changes)
    (SOLVER, "embedded", setting("methods/gptq-w4a8/solver", {"name": "gptq", "damping": 0.02})),
    ("one method's format or transforms", "embedded", setting("methods/rtn-w4/weights", CHANNEL)),
    ("one method's format or transforms", "embedded", setting("methods/rtn-w4/transforms", [{"name": "low-rank"}])),
    ("a mixed method's budget", "embedded-mixdq", setting("methods/mixdq-w5a8/allocation/programs/0/budget/bits", 6)),
    (METRIC, "embedded", setting("metrics/psnr", {"resamples": 200})),
    ("a method added", "embedded", setting("methods/rtn-w8", {"weights": CHANNEL})),
    ("a method removed", "embedded", without("methods/rtn-w2")),
    (
        "a mixed method added or removed whose objective no other one has",
        "embedded-mixdq",
        setting("methods/mixed-joules-0.9/allocation/programs/0/objective", "ssim"),
    ),
    ("how long and how precisely is measured (`measuring`)", "embedded-mixdq", setting("measuring", {"blocks": 9})),
    (
        "the meter or its settings, `warmup_s`, `images_per_batch`",
        "embedded-mixdq",
        setting("measuring", {"warmup_s": 9}),
    ),
    (
        "another judge, classifier or entry of `extractors`",
        "embedded",
        setting("judge", {"model": "ViT-B-32", "pretrained": "openai"}),
    ),
    (
        "another judge, classifier or entry of `extractors`",
        "embedded-digits",
        setting("classifier/path", "resources/models/judge"),
    ),
]
MODULES = [  # (change in the table, experiment, plugin)
    (SOLVER, "embedded", "solvers/gptq"),
    ("a library's solver, or `export_layers.py`", "embedded-methods", "solvers/auto-gptq"),
    (METRIC, "embedded", "metrics/clip-score"),
    ("a kernel's module", "embedded", "kernels/int8_in_c"),
]
MARGIN = "`margin`"
POLICY = "`gate`, what its policy says"
EARLIER = "`baseline_results`, the tables of that result"
DRAWS = "one method's `cache` or `steps`"
COMPONENT = "what a method quantizes of one component"
LIMITS = "`max_energy_j`, `max_latency_s`, `max_memory_mb`, `max_size_mb`, `min_quality`"
SHOWN = "how a metric is shown (`x-shown` in its schema)"
OTHERS = {  # what files are read tells of these, and tests/workflow; the number of parts is tested below
    "touch any file, edit a comment, a docstring or how jobs are run (`jobs/`), reorder keys, write a default out, "
    "`git checkout` there and back",
    "more images in a sampling",
    "`images_per_job`",
    "a piece of the report's page",
    "a file under `data/`",
    "other weights under a model's path",
}


@pytest.mark.parametrize(("row", "name", "change"), SETTINGS)
def test_the_table_says_what_other_settings_rerun(row, name, change):
    assert stages(followed(changed(name, change), name)) == told(rows()[row], name)


@pytest.mark.parametrize(("row", "name", "module"), MODULES)
def test_the_table_says_what_another_module_reruns(row, name, module):
    own = plan(name)
    loads = {rule for rule, names in jobs(own) if module in own.plugins(rule, names)}
    loads |= set(re.findall(r"`(\w+)\.py`", row))
    assert stages(followed(loads, name)) == told(rows()[row], name)


QUANTIZED = {"weights": CHANNEL, "cache": FIRST_BLOCK}


@pytest.mark.parametrize("change", [{"steps": 5}, {"cache": {"name": "taylorseer"}}, {"cache": None, "steps": 4}])
def test_the_table_says_that_another_way_to_draw_quantizes_nothing(change):
    before, after = (
        read(plan_of("embedded", setting("methods/cached", entry))) for entry in (QUANTIZED, QUANTIZED | change)
    )
    rules = {rule for rule, names in before if before[rule, names] != after[rule, names]}
    assert "share_weights" in rules and not rules & {"allocate", "quantize", "quantize_apart", "candidates"}
    words = stages(rules | followed({"share_weights"}, "embedded"))
    assert words | stages({"features"}) == told(rows()[DRAWS], "embedded")


def test_readme_says_what_another_component_reruns():
    name = "embedded-components"
    before, after = read(plan(name)), read(plan_of(name, setting("methods/vae-rtn-w4/components/vae/weights", CHANNEL)))
    rules = {
        rule for rule, names in before.keys() | after.keys() if before.get((rule, names)) != after.get((rule, names))
    }
    assert not rules & {"quantize", "quantize_apart", "allocate"} and "quantize_component" in rules
    assert stages(followed(rules, name)) == told(rows()[COMPONENT], name)


def test_methods_that_quantize_alike_are_quantized_once():
    def change(entries):
        entries["methods"] |= {
            "alone": {"steps": 5},
            "cached": QUANTIZED,
            "fewer": {"weights": CHANNEL, "steps": 5},
            "w4-fewer": {**entries["methods"]["rtn-w4"], "steps": 5},
        }

    own = plan_of("embedded", change)
    assert own.weights_of == {
        "alone": ("checkpoint", "float32"),
        "cached": ("shared", "cached"),
        "fewer": ("shared", "cached"),
        "w4-fewer": ("checkpoint", "rtn-w4"),
    }
    names = {"model": "tiny-sd3", "method": "fewer"}
    made = {"weights": "results/embedded/checkpoints/tiny-sd3/cached/shared/manifest.json"}
    assert inputs.files(own, "share_weights", names) == made


def test_a_cache_is_loaded_by_what_draws_with_it_alone():
    own = plan_of("embedded", setting("methods/cached", QUANTIZED))
    found = {rule for rule, names in jobs(own) if "caches/first-block" in own.plugins(rule, names)}
    assert found == {"generate", "generate_part", "measure"}


def test_the_table_says_what_another_word_for_a_metric_reruns():
    assert stages(followed(set(slices.SHOWING_METRICS), "embedded")) == told(rows()[SHOWN], "embedded")


def test_the_table_says_that_another_margin_measures_nothing():
    before, after = read(plan("embedded")), read(plan_of("embedded", margin=0.1))
    rules = {rule for rule, names in before if before[rule, names] != after[rule, names]}
    assert rules == {"tables"} and stages(followed(rules, "embedded")) == told(rows()[MARGIN], "embedded")


def test_the_table_says_that_other_limits_rerun_the_recommendation():
    before, after = read(plan("embedded")), read(plan_of("embedded", max_size_mb=4, min_quality={"psnr": 40}))
    rules = {rule for rule, names in before if before[rule, names] != after[rule, names]}
    assert rules == {"recommend"} and stages(followed(rules, "embedded")) == told(rows()[LIMITS], "embedded")


def test_the_table_says_that_another_policy_reruns_the_gate(tmp_path):
    plans = []
    for number, text in enumerate(
        ("cost: {energy: 1}", "cost: {energy: 0.9}", "# the same\ncost: {energy: 1}\nalpha: 0.05")
    ):
        (tmp_path / f"{number}.yaml").write_text(text)
        plans.append(read(plan_of("embedded", gate=str(tmp_path / f"{number}.yaml"))))
    assert plans[0] == plans[2]
    rules = {rule for rule, names in plans[0] if plans[0][rule, names] != plans[1][rule, names]}
    assert rules == {"gate"} and stages(rules) == told(rows()[POLICY], "embedded")
    assert not {rule for rule, _ in jobs(plan("embedded"))} & targets.KEYS.keys()


def test_the_table_says_that_another_result_reruns_the_comparison(tmp_path):
    """No slice holds it: the other result's table is an input file."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/summary.csv").touch()
    compared = plan_of("embedded", baseline_results=str(tmp_path))
    assert read(compared) == read(plan("embedded")) | {("compare", "{}"): ([], [])}
    assert compared.decided == ["results/embedded/tables/comparison.json"]
    assert stages({"compare"}) == told(rows()[EARLIER], "embedded")


def test_every_row_of_the_table_is_held_against_the_tables_or_told_by_files():
    told = {row for row, *_ in SETTINGS + MODULES} | {SHOWN, MARGIN, LIMITS, POLICY, EARLIER, DRAWS, COMPONENT} | OTHERS
    assert told == rows().keys()


def test_more_images_draw_no_full_part_anew_and_measure_nothing():
    more = setting("samplings/steps-20/images", 64)
    assert changed("embedded", more) == {"generate", "tables"}


def test_other_parts_are_other_jobs_and_change_no_slice():
    before, after = plan("embedded"), plan_of("embedded", images_per_job=32)
    assert read(before) == read(after)
    assert not before.parts and {len(part) for part in after.parts["steps-20"]} == {32}
