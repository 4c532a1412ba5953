"""User input: YAML as people write it, names from other projects, and Snakemake's command line."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest

from quantwatt import registry
from quantwatt.config import command_line, experiment, grid_size, targets, yaml_files
from quantwatt.config.schemas import ConfigurationError

SMOKE = yaml_files.read_yaml(experiment.EXPERIMENTS / "smoke.yaml", "smoke.yaml")
FILE = "mine.yaml"


def refused(action, *arguments):
    """The sentence that an action ends with."""
    with pytest.raises(ConfigurationError) as caught:
        action(*arguments)
    sentence = str(caught.value)
    assert sentence.endswith(".") and sentence.isprintable()
    return sentence


@pytest.mark.parametrize(
    ("text", "value"),
    [("no", "no"), ("on", "on"), ("1e-3", 0.001), ("1E5", 1e5), ("010", 10), ("1:30", "1:30"), ("50_000", 50000),
     ("2026-11-22", "2026-11-22"), ("true", True), ("null", None), ("~", None), (".5", 0.5), ("1.", 1.0), ("-3", -3),
     ("0x10", 16), ("1_0.5", 10.5), ("123456_", "123456_"), ("=", "="), ("'3'", "3")],
)  # fmt: skip
def test_plain_words_are_what_they_look_like(text, value):
    found = yaml_files.parse(f"x: {text}\n", FILE)["x"]
    assert found == value and type(found) is type(value)


def test_words_of_yaml_1_1_name_methods_and_still_answer_yes_or_no(tmp_path):
    text = "a: {cycle: yes}\nno: &shared {seed: 1}\non: {<<: *shared, steps: 2}\n"
    found = yaml_files.parse(text, FILE)
    assert list(found) == ["a", "no", "on"] and found["on"] == {"seed": 1, "steps": 2}
    raw = copy.deepcopy(SMOKE)
    raw["samplings"]["steps-4"]["cycle"] = "yes"
    assert experiment.check_experiment(raw, FILE)["samplings"]["steps-4"]["cycle"] is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:\n  b: 1\n c: 2\n", ["line 3", "' c: 2'", "from line 1 on ('a:')"]),
        ("a:\n\tb: 1\n", ["line 2", "a tab", "spaces"]),
        ("a: [1, 2\nb: 3\n", ["line 2", "']'", "opens in line 1"]),
        ("a: {x: 1\nb: 3\n", ["line 2", "'}'", "opens in line 1"]),
        ('a: "x\nb: 3\n', ["quotation mark is not closed", "opens in line 1"]),
        ("a: b: c\n", ["line 1", "'a: b: c'", "colon"]),
        ("a: 'it's'\n", ["line 1", "after a text in quotation marks"]),
        ("exclude: [*.attn]\n", ["line 1", "begins with * or &", "quote it"]),
        ("a: *x\n", ["line 1", "begins with *", "quote it"]),
        ("a: @x\n", ["line 1", "quote it"]),
    ],
)
def test_a_mistake_in_yaml_is_told_by_its_lines(text, words):
    sentence = refused(yaml_files.parse, text, FILE)
    assert sentence.startswith(f"{FILE}: line ") and all(word in sentence for word in words), sentence


def changed(path, value):
    raw = copy.deepcopy(SMOKE)
    *parents, last = path.split("/")
    part = raw
    for key in parents:
        part = part[key]
    part[last] = value
    return refused(experiment.check_experiment, raw, FILE)


WEIGHTS = "methods/rtn-w8a8/weights/format"


@pytest.mark.parametrize(
    ("path", "value", "end"),
    [
        (WEIGHTS, "int4", "; write {format: integer, bits: 4}."),
        (WEIGHTS, "fp8", "; write float8."),
        (WEIGHTS, "mxfp8_e5m2", "; write {format: mxfp8}, with element: e4m3 or e5m2."),
        (WEIGHTS, "NF4", "; write nf4."),
        (WEIGHTS, "NVFP4", "; write nvfp4."),
        ("methods/rtn-w8a8/weights/bits", 16, "; leave 'weights' out: what is not quantized has 16 bits."),
        ("methods/rtn-w8a8/weights/wbits", 8, "unknown key 'wbits'; write 'bits'."),
        ("methods/rtn-w8a8/solver", {"name": "smoothquant"}, "a transform: transforms: [{name: smoothing}]."),
        ("models/tiny-sd3/family", "flux", "; write diffusers."),
        ("models/tiny-sd3/dtype", "bf16", "; write bfloat16."),
        ("models/tiny-sd3/dtype", "fp16", "; write float16."),
        ("models/tiny-sd3/dtype", "torch.float32", "; write float32."),
        ("models/tiny-sd3/torch_dtype", "float32", "unknown key 'torch_dtype'; write 'dtype'."),
        ("samplings/steps-4/num_inference_steps", 4, "; write 'steps'."),
        ("samplings/steps-4/resolution", 64, "; write 'height' and 'width'."),
        ("metrics/sharpness", {}, f"(known: {', '.join(registry.names('metrics'))})."),
        ("metrics/fvd", {}, f"(known: {', '.join(registry.names('metrics'))})."),
        ("metrics/ClipScore", {}, "; write clip-score."),
    ],
)
def test_other_words_lead_to_ours_and_far_ones_nowhere(path, value, end):
    assert changed(path, value).endswith(end)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("metrics", ["psnr", "ssim"], "expected a mapping of keys to values, got ['psnr', 'ssim']; write 'psnr:' in"),
        ("samplings", [], "expected a mapping of keys to values, got []"),
        ("samplings/steps-4/images", "512", "got '512'; leave out the quotation marks"),
        ("baseline", 3, "expected text, got 3; put it in quotation marks"),
        ("samplings/steps-4/cycle", "maybe", "expected true or false, got 'maybe'"),
        ("methods", {}, "methods: {} is empty"),
        ("models", {"tiny sd3": {}}, "'tiny sd3' does not fit (letters, digits, dot, dash and underscore)"),
    ],
)  # fmt: skip
def test_kinds_of_values_are_named_in_plain_words(path, value, words):
    assert words in changed(path, value)


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("a red circle\n" * 64)
    raw = copy.deepcopy(SMOKE)
    raw["samplings"]["steps-4"]["prompts"] = "~/prompts.txt"
    raw["judge"] = {"model": "local-dir:~/judge", "pretrained": None}
    assert f"judge.model: '{tmp_path}/judge' does not exist" in refused(experiment.check_experiment, raw, FILE)
    raw["judge"] = SMOKE["judge"]
    completed = experiment.check_experiment(raw, FILE)
    assert completed["samplings"]["steps-4"]["prompts"] == str(tmp_path / "prompts.txt")
    assert experiment.load_config({"results": "~/results/"})["results"] == str(tmp_path / "results")


@pytest.mark.parametrize(
    ("path", "words"),
    [("~no-such-user/x", "there is no such user"), ("$DATA/x", "variables are not replaced"),
     ("../models/x", "looked for in the project's folder"),
     ("resources/models/tiny-sd", "did you mean 'resources/models/tiny-sd3'")],
)  # fmt: skip
def test_a_path_that_does_not_exist_says_how_it_was_read(path, words):
    assert words in changed("models/tiny-sd3/path", path)


CONFIG = [("config.yaml", {"device": "auto"}), (FILE, {"meter": "none", "measuring": {"blocks": 2}})]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["device=gpu"], "--config: device: 'gpu' is none of auto, cpu, cuda; write cuda."),
        (["device=CUDA"], "; write cuda."),
        (["device=cuda:0"], "; write cuda, and choose the GPU by the environment variable CUDA_VISIBLE_DEVICES."),
        (["meter=off"], "; write none."),
        (["output=x"], "--config: unknown key 'output'; write 'results'."),
        (["measuring={idle_w: 80}"], "--config: measuring.idle_w: 80 W idle is not below full_w"),
        (["inception_weights=nowhere.pt"], "--config: inception_weights: 'nowhere.pt' does not exist"),
        (["experiment=resources/experiments/smoke.yaml"], "is a file; write its name alone, experiment=smoke."),
        (["experiment=mine.yml"], "experiment=mine."),
        (["results=/"], "--config: results: '/' is no folder for results alone"),
        (["results=README.md/x"], "README.md' is a file and no folder"),
        (["device=[x"], "--config: device: line 1: a list is not closed"),
    ],
)
def test_a_mistake_is_blamed_on_what_has_it(words, sentence):
    assert sentence in refused(lambda: experiment.load_config([*CONFIG, ("--config", experiment.values(words))]))


def test_a_mistake_in_a_file_is_blamed_on_that_file():
    wrong = [CONFIG[0], (FILE, {"devise": "cpu"}), ("--config", {"device": "cpu"})]
    assert refused(experiment.load_config, wrong) == "mine.yaml: unknown key 'devise'; did you mean 'device'."
    assert experiment.source_of("meter", CONFIG) == FILE
    assert experiment.source_of("results", CONFIG) == "config.yaml"


def test_words_of_the_command_line_are_read_as_those_of_a_file():
    """Snakemake reads 123_456 as a number, null as a text, and all that is nested as texts."""
    words = [
        "experiment=123_456",
        "inception_weights=null",
        "measuring={blocks: 4, idle_s: 1e1}",
        "images_per_job=1_000",
    ]
    loaded = experiment.load_config([*CONFIG, ("--config", experiment.values(words))])
    assert loaded["experiment"] == "123_456" and loaded["inception_weights"] is None and loaded["meter"] == "none"
    assert (loaded["measuring"]["blocks"], loaded["measuring"]["idle_s"]) == (4, 10)
    assert loaded["images_per_job"] == 1000


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("-n --config experiment=smoke results/x.json -q",
         "put targets first: snakemake results/x.json --config experiment=smoke."),
        ("--config smoke", "--config smoke: write --config experiment=smoke."),
        ("--config experiment = smoke", "write KEY=VALUE without spaces"),
        ("-C experiment:smoke", "write KEY=VALUE without spaces"),
        ("--config device", "a value is missing; write device=VALUE."),
        ("--config k=3", "'k' is no name of a setting."),
        ("--configfile nope.yaml", "--configfile nope.yaml: there is no such file."),
        ("--configfile README.md/x", "so put targets first."),
        ("--configfile=nope.yaml all", "--configfile nope.yaml: there is no such file."),
    ],
)  # fmt: skip
def test_a_command_line_that_snakemake_cannot_read(words, sentence):
    with pytest.raises(SystemExit) as ended:
        command_line.check(words.split())
    assert sentence in ended.value.code


def test_a_command_line_that_snakemake_reads_passes():
    command_line.check("-n all --config experiment=smoke device=cpu -q".split())
    command_line.check("--config experiment=smoke -- results/x.json".split())


def test_both_profiles_check_the_command_line():
    """Started as a user does: Snakemake's own parser would end in a traceback."""
    profiles = [experiment.ROOT / f"profiles/{name}/config.yaml" for name in ("default", "slurm")]
    checks = [yaml_files.read_yaml(path, path.name)["__definitions__"] for path in profiles]
    assert checks[0] == checks[1]
    command = [sys.executable, "-m", "snakemake", "-n", "--config", "experiment=smoke", "results/smoke/report.html"]
    done = subprocess.run(command, cwd=experiment.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("--config takes every word up to the next option")


def test_a_target_of_another_experiment_names_it():
    loaded = {**experiment.check_experiment(SMOKE, FILE)}
    config = experiment.load_config({"experiment": "smoke"})
    sentence = refused(targets.check, "results/embedded/tables/summary.csv", loaded, config)
    assert "this belongs to experiment 'embedded'" in sentence and "add --config experiment=embedded" in sentence
    assert "did you mean 'smoke'" in refused(targets.check, "results/smok/report.html", loaded, config)
    for target, words in (
        ("solved/gptqmodel/tiny-sd3/rtn/manifest.json", "there is no method 'rtn'"),
        ("scores/tiny-sd3/float32/steps-5/psnr.json", "there is no sampling 'steps-5'; did you mean 'steps-4'"),
        ("scores/tiny-sd3/float32/steps-4/fidd.json", "there is no metric 'fidd'; did you mean 'fid'"),
        ("scores/tiny-sd/float32/steps-4/fid.json", "there is no model 'tiny-sd'; did you mean 'tiny-sd3'"),
    ):
        assert words in refused(targets.check, f"results/smoke/{target}", loaded, config)
    for word in ("all", "results/smoke/report.html", "results", "results/benchmarks/kernels.json", "results/smoke"):
        targets.check(word, loaded, config)


def test_a_target_whose_key_is_not_set_names_the_key(tmp_path):
    loaded, config = experiment.check_experiment(SMOKE, FILE), experiment.load_config({"experiment": "smoke"})
    for target, key in (("gate", "gate"), ("compare", "baseline_results")):
        table = "gate.md" if target == "gate" else "comparison.json"
        for word in (target, f"results/smoke/tables/{table}"):
            assert f"{target}: no " in (sentence := refused(targets.check, word, loaded, config))
            assert f"add --config {key}=" in sentence
            targets.check(word, loaded, config | {key: "there"})


def test_a_result_to_compare_with_is_another_one_and_finished(tmp_path):
    here = {"experiment": "smoke", "results": str(tmp_path)}
    other = str(tmp_path / "earlier")
    sentence = refused(experiment.load_config, here | {"baseline_results": other})
    assert sentence.startswith(f"config.yaml: baseline_results: '{other}' has no tables/summary.csv")
    itself = f"{tmp_path}/smoke/"
    assert "is where this run writes" in refused(experiment.load_config, here | {"baseline_results": itself})
    assert "baseline_results" in refused(experiment.load_config, here | {"baseline_results": "a b; rm"})
    (tmp_path / "earlier/tables").mkdir(parents=True)
    (tmp_path / "earlier/tables/summary.csv").touch()
    assert experiment.load_config(here | {"baseline_results": f"{other}/"})["baseline_results"] == other


def test_an_absurd_grid_is_refused_with_its_number():
    raw = copy.deepcopy(SMOKE)
    raw["samplings"]["steps-4"] |= {"images": 10**9, "cycle": True}
    config = experiment.load_config({})
    sentence = refused(grid_size.check_jobs, experiment.check_experiment(raw, FILE), config, FILE)
    assert "1,000,000,000 images in parts of 2,500" in sentence and "samplings.steps-4" in sentence
    number = int(sentence.split(" jobs")[0].split()[-1].replace(",", ""))
    assert number > 390_000 * len(raw["methods"]) and "100,000" in sentence
    config["max_jobs"] = number
    grid_size.check_jobs(experiment.check_experiment(raw, FILE), config, FILE)


def test_a_grid_of_too_many_cells_is_refused_before_they_are_listed():
    raw = copy.deepcopy(SMOKE)
    sampling = raw["samplings"]["steps-4"]
    raw["samplings"] = {f"seed-{seed}": sampling | {"seed": seed} for seed in range(2_000)}
    raw["methods"] |= {f"plain-{i}": None for i in range(2_000)}
    assert "samplings are 4,0" in refused(experiment.check_experiment, raw, FILE)


def test_the_number_of_jobs_is_that_of_a_large_grid_that_is_planned():
    """800 cells of 50,000 images, as tests/workflow plan them."""
    entry = {"models": {"m": {}}, "methods": dict.fromkeys(range(40)), "metrics": {"fid": {}, "psnr": {}},
             "samplings": {name: {"images": 50_000, "batch_size": 8} for name in range(20)}, "kind": "image",
             "sensitivities": {"s": {"jobs": 10}}}  # fmt: skip
    assert sum(grid_size.jobs(entry, 2500).values()) == 2 * 40 + 2 + 800 * (20 + 1 + 2 + 2) + 12


def test_an_experiment_of_another_suffix_is_to_be_renamed(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
    (tmp_path / "other.yml").write_text("models: {}\n")
    assert "there is no 'other'" in refused(experiment.load_experiment, "other")
    assert "; rename other.yml to other.yaml." in refused(experiment.load_experiment, "other")


@pytest.mark.skipif((Path(sys.base_prefix) / "conda-meta").exists(), reason="conda's interpreter has its packages")
def test_a_script_run_by_the_systems_interpreter_names_the_right_one():
    command = [sys.executable, "-S", "workflow_scripts/generate.py", "--help"]  # -S: without the environment's packages
    done = subprocess.run(command, cwd=experiment.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "run .venv/bin/python (make install)" in done.stderr


def test_make_alone_tells_what_there_is_and_installs_nothing():
    done = subprocess.run(["make"], cwd=experiment.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "make report" in done.stdout and "smoke" in done.stdout
    device = subprocess.run(
        ["make", "-n", "-o", ".venv/installed", "report", "EXPERIMENT=smoke", "DEVICE=cuda"],
        cwd=experiment.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "--config experiment=smoke device=cuda" in device.stdout
