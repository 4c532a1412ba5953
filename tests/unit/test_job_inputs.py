"""Input files of the jobs of an experiment, and the arguments of their scripts."""

import shutil
from pathlib import Path

import pytest
from plans import plan, plan_of, raw, setting

from quantwatt.artifacts.errors import DataError
from quantwatt.config import inputs
from quantwatt.config.schemas import ConfigurationError
from quantwatt.jobs import command

CELL = {"model": "tiny-sd3", "method": "gptq-w4a8", "sampling": "steps-20"}
ROOT = Path(__file__).parents[2]
R = "results/embedded"
MIXED = "results/embedded-mixdq"


def mixed(method):
    return {"model": "tiny-sdxl", "method": method}


@pytest.mark.parametrize(
    ("name", "rule", "names", "files"),
    [
        ("embedded", "quantize", CELL, {"calibration": f"{R}/calibration/tiny-sd3/manifest.json"}),
        ("embedded", "quantize", CELL | {"method": "rtn-w4"}, {}),
        ("embedded", "allocate", CELL, {}),
        ("embedded", "allocate", CELL | {"method": "float32"}, {}),
        ("embedded-mixdq", "candidates", mixed("mixdq-w4a8"),
         {"sensitivity": f"{MIXED}/sensitivity/tiny-sdxl/one-step.csv"}),
        ("embedded-mixdq", "candidates", mixed("mixed-joules-0.9"),
         {"sensitivity": f"{MIXED}/sensitivity/tiny-sdxl/measured.csv",
          "costs": f"{MIXED}/costs/tiny-sdxl/measured.csv"}),
        ("embedded-mixdq", "allocate", mixed("mixdq-w4a8"),
         {"candidates": f"{MIXED}/allocation/tiny-sdxl/mixdq-w4a8/candidates.json",
          "trials": f"{MIXED}/allocation/tiny-sdxl/mixdq-w4a8/trials.csv"}),
        ("embedded-mixdq", "allocate", mixed("mixed-joules-0.9"),
         {"candidates": f"{MIXED}/allocation/tiny-sdxl/mixed-joules-0.9/candidates.json"}),
        ("embedded-mixdq", "sensitivity", {"model": "tiny-sdxl", "sensitivity": "one-step"},
         {"tables": [f"{MIXED}/sensitivity/tiny-sdxl/one-step/job-{job}.csv" for job in range(2)]}),
        ("embedded-methods", "quantize", CELL | {"method": "auto-gptq-w4g128"},
         {"solved": "results/embedded-methods/solved/auto-gptq/tiny-sd3/auto-gptq-w4g128/manifest.json"}),
        ("embedded", "reference", {}, {"images": []}),
        ("imagenet64-brecq", "reference", {}, {"images": ["data/imagenet/train"]}),
    ],
)  # fmt: skip
def test_the_input_files_of_a_job(name, rule, names, files):
    assert inputs.files(plan(name), rule, names) == files


FEATURES = f"{R}/features/tiny-sd3"


@pytest.mark.parametrize(
    ("metric", "method", "files", "options"),
    [
        ("fid", "gptq-w4a8", {
            "features": f"{FEATURES}/gptq-w4a8/steps-20/judge.json",
            "reference_features": f"{R}/features/reference/judge.json",
            "baseline_features": f"{FEATURES}/float32/steps-20/judge.json",
        }, []),
        ("kid", "float32", {
            "features": f"{FEATURES}/float32/steps-20/judge.json",
            "reference_features": f"{R}/features/reference/judge.json",
        }, []),
        ("clip-score", "gptq-w4a8", {
            "features": f"{FEATURES}/gptq-w4a8/steps-20/judge.json",
            "baseline_features": f"{FEATURES}/float32/steps-20/judge.json",
        }, []),
        ("psnr", "gptq-w4a8", {
            "images": f"{R}/images/tiny-sd3/gptq-w4a8/steps-20/manifest.json",
            "baseline": f"{R}/images/tiny-sd3/float32/steps-20/manifest.json",
        }, []),
        ("psnr", "float32", {
            "images": f"{R}/images/tiny-sd3/float32/steps-20/manifest.json",
            "baseline": f"{R}/images/tiny-sd3/float32/steps-20/manifest.json",
        }, ["--is-baseline"]),
    ],
)  # fmt: skip
def test_what_a_score_compares(metric, method, files, options):
    names = CELL | {"metric": metric, "method": method}
    assert inputs.files(plan("embedded"), "score", names) == files
    words = [f"--{name.replace('_', '-')} {path}" for name, path in files.items()]
    assert inputs.arguments(plan("embedded"), "score", names) == " ".join(words + options)


def test_a_score_of_a_text_model_reads_predictions():
    names = {"model": "tiny-gpt2", "method": "gptq-w4", "sampling": "held-out", "metric": "perplexity"}
    found = inputs.files(plan("embedded-text"), "score", names)
    assert found.keys() == {"predictions", "baseline"}
    assert "/predictions/tiny-gpt2/fp32/" in found["baseline"]


@pytest.mark.parametrize(
    ("name", "config", "metric", "extractor"),
    [
        ("embedded", {}, "fid", "judge"),
        ("embedded", {"inception_weights": "download"}, "kid", "inception"),
        ("embedded", {"inception_weights": "download"}, "clip-score", "judge"),
        ("embedded-digits", {}, "fid", "classifier"),
        ("embedded-digits", {"inception_weights": "download"}, "class-accuracy", "classifier"),
        ("embedded", {}, "ssim", None),
    ],
)
def test_whose_features_a_metric_compares(name, config, metric, extractor):
    assert plan_of(name, **config).extractor_of(metric) == extractor


@pytest.mark.parametrize(
    ("rule", "metric", "words"),
    [
        ("score", "psnrr", "no metric 'psnrr'.*did you mean 'psnr'"),
        ("quantize", None, "no method 'gptq'"),
        ("candidates", None, "no method 'gptq'"),
    ],
)
def test_wildcards_that_name_no_entry(rule, metric, words):
    with pytest.raises(ConfigurationError, match=words):
        inputs.files(plan("embedded"), rule, CELL | {"metric": metric, **({} if metric else {"method": "gptq"})})


@pytest.mark.parametrize(
    ("made", "conda", "python"),
    [(True, False, ".venvs/gptqmodel/bin/python"), (False, False, "python"), (True, True, "python")],
)
def test_a_librarys_interpreter(monkeypatch, tmp_path, made, conda, python):
    """An environment that `make backends` did not finish is none."""
    (tmp_path / ".venvs/gptqmodel/bin").mkdir(parents=True)
    if made:
        (tmp_path / ".venvs/gptqmodel/installed").touch()
    monkeypatch.setattr(command, "PROJECT", tmp_path)
    assert command.library_python("gptqmodel", conda) == python


# Parts of image sets


@pytest.fixture
def parted():
    """100 images in batches of 32, 40 to a job: parts of 64 and 36."""
    return plan_of("embedded", setting("samplings/steps-20/images", 100), images_per_job=40)


def test_the_parts_of_an_image_set(parted):
    folder = f"{R}/images/tiny-sd3/gptq-w4a8/steps-20"
    assert inputs.files(parted, "gather_images", CELL) == {
        "parts": [f"{folder}/part-00000.json", f"{folder}/part-00064.json"]
    }
    assert inputs.part(parted, CELL | {"first": "00064"}) == "--part 64 100"
    assert inputs.first_images(parted, CELL) == "0 100 64"
    assert parted.whole_sets == [name for name in raw("embedded")["samplings"] if name not in parted.parts]


@pytest.mark.parametrize("first", ["00032", "64", "00100"])
def test_no_part_begins_there(parted, first):
    with pytest.raises(ConfigurationError, match=f"no part begins at {first}; parts are part-00000.json, "):
        inputs.part(parted, CELL | {"first": first})


# Fingerprints


def test_a_model_from_a_hub_has_no_local_files():
    assert inputs.fingerprint(plan("sd35-medium-gptq"), "model", {"model": "sd35-medium"}) is None
    assert inputs.fingerprint(plan("embedded"), "model", CELL)


@pytest.mark.parametrize(
    ("name", "extractor", "local"),
    [("embedded", "judge", True), ("embedded", "inception", False), ("embedded-digits", "classifier", True),
     ("sd35-medium-gptq", "judge", False)],
)  # fmt: skip
def test_weights_that_are_local_are_known_by_their_content(name, extractor, local):
    assert bool(inputs.fingerprint(plan(name), "fetch_weights", {"extractor": extractor})) == local


def test_other_weights_under_the_same_path(tmp_path):
    judge = tmp_path / "judge"
    shutil.copytree(ROOT / "resources/models/judge", judge)
    own = plan_of("embedded", setting("judge/model", f"local-dir:{judge}"))
    before = inputs.fingerprint(own, "fetch_weights", {"extractor": "judge"})
    weights = next(judge.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[::-1])
    assert inputs.fingerprint(own, "fetch_weights", {"extractor": "judge"}) != before
    shutil.rmtree(judge)
    with pytest.raises(DataError):
        inputs.fingerprint(own, "fetch_weights", {"extractor": "judge"})


def test_real_images_of_a_data_set_are_an_input_and_others_a_fingerprint(tmp_path):
    assert inputs.fingerprint(plan("imagenet64-brecq"), "reference", {}) is None  # no such folder
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a")
    reference = {"folder": str(folder), "height": 8, "width": 8}
    own = plan_of("embedded", setting("reference", reference))
    before = inputs.fingerprint(own, "reference", {})
    (folder / "a.png").write_bytes(b"b")
    assert before and inputs.fingerprint(own, "reference", {}) != before
