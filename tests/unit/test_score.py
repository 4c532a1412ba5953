"""The scoring script: statuses, the entries written with a score, and refused combinations of inputs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import score
from quantwatt.artifacts import feature_files, images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json, write_json
from quantwatt.jobs.score_memory import score_memory_mb
from quantwatt.score import predictions
from quantwatt.score.metrics import OfItems, kid, psnr, ssim

KEYS = set(
    "status reason metric value low high change n_images unit higher_is_better library features resize reference "
    "reference_sha256 prompts_sha256 level resamples values weights log_values provenance".split()
)


@pytest.fixture
def cell(tmp_path):
    """Images of a baseline and of a method that is off by 5 levels, as manifests."""
    rng = np.random.default_rng(0)
    baseline = rng.integers(0, 240, (6, 16, 16, 3), dtype=np.uint8)
    prompts, seeds = [f"prompt {i}" for i in range(6)], list(range(6))
    for name, found in (("bf16", baseline), ("rtn-w4a16", baseline + np.uint8(5))):
        images.write_images(tmp_path / name, [(found, prompts, seeds)], {"method": name})
    return tmp_path


def features(path, n, dims=4, shift=0.0, seed=0, **fields):
    rng = np.random.default_rng(seed)
    known = {"status": "ok", "reason": None, "extractor": "judge", "resize": "none", "weights_sha256": "a"}
    known |= {"reference": "shapes", "images_sha256": "b", "prompts_sha256": "c"}
    image = rng.normal(0, 1, (n, dims)).astype(np.float32)
    text = image + rng.normal(0, 0.5, (n, dims)).astype(np.float32)
    feature_files.write_features(path, {"image": image + np.float32(shift), "text": text}, known | fields)
    return str(path)


def run(metric, output, *arguments):
    score.main(["--metric", metric, "--output", str(output), *map(str, arguments)])
    found = read_json(output)
    assert set(found) == KEYS and found["metric"] == metric and found["level"] == 0.95
    return found


def test_psnr_against_the_baseline(cell):
    manifests = [cell / "rtn-w4a16" / "manifest.json", "--baseline", cell / "bf16" / "manifest.json"]
    found = run("psnr", cell / "psnr.json", "--images", *manifests, "--settings", '{"resamples": 50}')
    assert found["value"] == pytest.approx(20 * np.log10(255 / 5))
    assert found["low"] <= found["value"] <= found["high"]
    assert (found["status"], found["n_images"], found["unit"], found["resamples"]) == ("ok", 6, "dB", 50)
    assert found["reference"] == "bf16" and found["library"].startswith("numpy 2")
    assert found["reference_sha256"] == images.images_sha256(read_json(cell / "bf16" / "manifest.json"))
    assert found["prompts_sha256"] == images.prompts_sha256({"prompt": f"prompt {i}"} for i in range(6))
    assert 0.9 < run("ssim", cell / "ssim.json", "--images", *manifests)["value"] < 1


def test_the_value_of_every_image_is_written(cell):
    manifests = [cell / name / "manifest.json" for name in ("rtn-w4a16", "bf16")]
    pixels, baseline = (list(images.iterate_images(path)) for path in manifests)
    for metric, module in (("psnr", psnr.psnr), ("ssim", ssim.ssim)):
        found = run(metric, cell / "x.json", "--images", manifests[0], "--baseline", manifests[1])
        assert found["values"] == pytest.approx(
            [module(*pair) for pair in zip(pixels, baseline, strict=True)], rel=1e-5
        )
        assert np.mean(found["values"]) == pytest.approx(found["value"], rel=1e-5)
        assert (found["weights"], found["log_values"]) == (None, False)
    equal = run("psnr", cell / "x.json", "--images", manifests[1], "--baseline", manifests[1])
    assert equal["values"] == pytest.approx([20 * np.log10(255) + 10 * np.log10(16 * 16 * 3)] * 6)  # no infinity


def test_values_of_features_and_texts(tmp_path):
    judged = ["--features", features(tmp_path / "here.json", 40)]
    found = run("clip-score", tmp_path / "x.json", *judged)
    assert len(found["values"]) == 40 and np.mean(found["values"]) == pytest.approx(found["value"], rel=1e-5)
    reference = ["--reference-features", features(tmp_path / "r.json", 90, seed=1)]
    assert run("kid", tmp_path / "x.json", *judged, *reference)["values"] is None
    items = [{"nll": 2.0 * k, "tokens": k, "correct": k // 2} for k in range(1, 9)]
    predictions.write(tmp_path / "p", items, {})
    of_texts = ["--predictions", tmp_path / "p" / "manifest.json", "--is-baseline"]
    for metric in ("accuracy", "perplexity"):
        found = run(metric, tmp_path / "x.json", *of_texts)
        mean = np.average(found["values"], weights=found["weights"])
        assert found["weights"] == list(range(1, 9)) and found["log_values"] == (metric == "perplexity")
        assert (np.exp(mean) if found["log_values"] else mean) == pytest.approx(found["value"], rel=1e-5)


def test_fifty_thousand_values_are_a_file_that_snakemake_compares_by_its_content(tmp_path):
    """Up to a megabyte it does; of a larger file it would see the date alone."""
    rng = np.random.default_rng(0)
    items = score._of_items(OfItems(rng.uniform(0.5, 1, 50_000)))
    write_json(tmp_path / "x.json", items)
    assert (tmp_path / "x.json").stat().st_size < 1e6 and items["values"] == read_json(tmp_path / "x.json")["values"]


def test_the_baseline_itself_is_the_reference(cell):
    found = run("psnr", cell / "psnr.json", "--images", cell / "bf16" / "manifest.json", "--is-baseline")
    assert (found["status"], found["reason"], found["value"]) == ("reference", "the reference itself", None)


def test_a_failed_cell_stays_failed(cell):
    images.write_no_images(cell / "rtn-w2a16", "unsupported", "no kernel", {"method": "rtn-w2a16"})
    failed, good = (cell / name / "manifest.json" for name in ("rtn-w2a16", "bf16"))
    found = run("ssim", cell / "ssim.json", "--images", failed, "--baseline", good)
    assert (found["status"], found["reason"]) == ("unsupported", "no kernel")
    assert found["value"] is None and found["n_images"] == 0 and found["values"] is None
    found = run("ssim", cell / "ssim.json", "--images", failed, "--is-baseline")
    assert found["status"] == "unsupported"
    found = run("ssim", cell / "ssim.json", "--images", good, "--baseline", failed)
    assert found["status"] == "unsupported" and "baseline has no images" in found["reason"]
    feature_files.write_features(cell / "judge.json", {}, {"status": "oom", "reason": "too large"})
    reference = features(cell / "reference.json", 30)
    found = run("fid", cell / "f.json", "--features", cell / "judge.json", "--reference-features", reference)
    assert (found["status"], found["reason"], found["value"]) == ("oom", "too large", None)


def test_a_corrupted_image_is_not_scored(cell):
    victim = cell / "rtn-w4a16" / "shard-000" / "00002.png"
    victim.write_bytes(victim.read_bytes()[:-1])
    manifests = (str(cell / name / "manifest.json") for name in ("rtn-w4a16", "bf16"))
    with pytest.raises(DataError, match="00002.png.*truncated"):
        score.score_against_baseline("psnr", {}, *manifests)


def test_metrics_of_features(tmp_path):
    here, reference = (
        features(tmp_path / "here.json", 40, shift=1.0),
        features(tmp_path / "r.json", 90, seed=1),
    )
    both = ["--features", here, "--reference-features", reference]
    for metric in ("fid", "kid"):
        found = run(metric, tmp_path / "x.json", *both, "--settings", '{"resamples": 20}')
        assert found["low"] < found["value"] < found["high"] and not found["higher_is_better"]
        assert found["reference"] == "shapes" and found["reference_sha256"] == "b"
        assert found["features"] == "judge" and found["library"].startswith("clean-fid 0")
        assert (found["n_images"], found["resamples"]) == (40, 20)
    found = run("clip-score", tmp_path / "x.json", "--features", features(tmp_path / "like-the-prompts.json", 40))
    assert 50 < found["low"] < found["value"] < found["high"] < 100
    assert found["reference"] is None and found["higher_is_better"]


@pytest.mark.parametrize("metric", ["fid", "kid", "clip-score"])
def test_the_change_from_the_baseline_is_drawn_in_pairs(tmp_path, metric):
    """Features that differ a little from the baseline's, image by image: the change is known far better than both."""
    here = features(tmp_path / "here.json", 200, shift=0.05)
    baseline, reference = features(tmp_path / "base.json", 200), features(tmp_path / "r.json", 300, seed=1, shift=1)
    arguments = ["--features", here, "--baseline-features", baseline, "--settings", '{"resamples": 100}']
    arguments += ["--reference-features", reference] if metric != "clip-score" else []
    found = run(metric, tmp_path / "x.json", *arguments)
    before = run(metric, tmp_path / "x.json", "--features", baseline, *arguments[4:])
    change = found["change"]
    assert change["value"] == pytest.approx(found["value"] - before["value"]) and before["change"] is None
    assert change["low"] < change["value"] < change["high"]
    assert change["high"] - change["low"] < (found["high"] - found["low"]) / 2
    assert run(metric, tmp_path / "x.json", *arguments, "--is-baseline")["change"] is None
    other = features(tmp_path / "other.json", 100)
    with pytest.raises(DataError, match="n_images"):
        score.score_features(metric, {}, here, reference, other)
    feature_files.write_features(tmp_path / "failed.json", {}, {"status": "oom", "reason": "too large"})
    assert score.score_features(metric, {"resamples": 20}, here, reference, tmp_path / "failed.json")["change"] is None


def test_no_interval_is_null_with_a_reason(tmp_path):
    here, reference = features(tmp_path / "here.json", 40), features(tmp_path / "r.json", 90, seed=1)
    both = ["--features", here, "--reference-features", reference, "--settings", '{"resamples": 0}']
    found = run("fid", tmp_path / "x.json", *both)
    assert found["status"] == "ok" and found["value"] > 0
    assert found["low"] is None and found["high"] is None and "no interval" in found["reason"]
    one = features(tmp_path / "one.json", 4)
    found = run("fid", tmp_path / "x.json", "--features", one, "--reference-features", reference)
    assert (found["status"], found["value"]) == ("unsupported", None) and "more than 4 images" in found["reason"]


def test_fid_reads_the_moments_of_a_reference_and_none_of_its_features(tmp_path):
    here, reference = features(tmp_path / "here.json", 40), features(tmp_path / "r.json", 90, seed=1)
    whole = score.score_features("fid", {"resamples": 20}, here, reference)
    drawn = feature_files.read_features(reference)[1]["image"].astype(np.float64)
    stored = {name: np.load(tmp_path / f"r-{name}.npy") for name in ("mean", "covariance")}
    np.testing.assert_allclose(stored["mean"], drawn.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stored["covariance"], np.cov(drawn, rowvar=False), rtol=1e-9)
    assert stored["covariance"].dtype == np.float64 and read_json(reference)["n_images"] == 90
    (tmp_path / "r-image.npy").unlink()
    assert score.score_features("fid", {"resamples": 20}, here, reference) == whole
    with pytest.raises(DataError, match="r-image.npy: the file is missing"):
        score.score_features("kid", {}, here, reference)
    generated = features(tmp_path / "g.json", 90, reference=None)
    assert not (tmp_path / "g-mean.npy").exists()
    with pytest.raises(DataError, match="no moments, as features of reference images do"):
        score.score_features("fid", {}, here, generated)
    (tmp_path / "r-mean.npy").write_bytes(b"short")
    with pytest.raises(DataError, match="r-mean.npy.*truncated"):
        score.score_features("fid", {}, here, reference)


def test_features_are_mapped_and_not_copied(tmp_path):
    path = features(tmp_path / "here.json", 33, dims=5)
    found = feature_files.read_features(path)[1]
    assert list(found) == ["image", "text"]
    for name in found:
        values = np.load(tmp_path / f"here-{name}.npy")
        assert np.array_equal(found[name], values) and found[name].dtype == values.dtype
        assert not found[name].flags.owndata and not found[name].flags.writeable


def test_memory_follows_from_what_a_score_reads():
    def features_of(n, dims, **more):
        return {"n_images": n, "files": {"inception-image.npy": {"bytes": 4 * n * dims}, **more}}

    sets = [features_of(50_000, 2048)] * 2
    moments = {"inception-mean.npy": {"bytes": 8 * 2048}, "inception-covariance.npy": {"bytes": 8 * 2048**2}}
    train = features_of(
        1_281_167,
        2048,
        **moments,
    )
    one, both = (score_memory_mb("fid", train, sets[:count]) for count in (1, 2))
    assert 4 * 443 < one < both < 6000  # the reference's features alone are 10,500 MB
    assert score_memory_mb("kid", train, sets) < 6000
    coco = [features_of(5000, 2048), features_of(kid.MAX_IMAGES, 2048)]
    assert score_memory_mb("kid", coco[1], coco[:1]) > 1500 + 8 * 2 * kid.MAX_IMAGES**2 / 1e6
    assert score_memory_mb("kid", features_of(kid.MAX_IMAGES + 1, 2048), coco[:1]) < 2000
    assert score_memory_mb("psnr", None, []) < score_memory_mb("clip-score", None, sets)


def test_features_of_different_extractors_are_not_compared(tmp_path):
    here = features(tmp_path / "here.json", 40)
    for key, value in (("extractor", "clip"), ("weights_sha256", "z"), ("resize", "bicubic")):
        other = features(tmp_path / "other.json", 40, **{key: value})
        with pytest.raises(DataError, match=key):
            score.score_features("fid", {}, here, other)
    (tmp_path / "here-image.npy").write_bytes(b"short")
    with pytest.raises(DataError, match="truncated"):
        score.score_features("clip-score", {}, here)


def test_missing_arguments_and_unknown_metrics_are_usage_errors(tmp_path, capsys):
    output = ["--output", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit):
        score.main(["--metric", "fid", "--features", "x.json", *output])
    assert "fid needs --reference-features" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        score.main(["--metric", "fdi", *output])
    assert "clip-score" in capsys.readouterr().err


def test_scores_import_no_torch_and_errors_are_one_sentence(cell):
    scripts = Path(score.__file__).parent
    program = f"import sys; sys.path.insert(0, {str(scripts)!r}); import score; score.main(sys.argv[1:]); "
    program += "print(sorted({'torch', 'cleanfid', 'scipy.stats', 'matplotlib'} & set(sys.modules)))"
    manifests = ["--images", str(cell / "rtn-w4a16" / "manifest.json"), "--baseline"]
    arguments = ["--metric", "ssim", *manifests, str(cell / "bf16" / "manifest.json")]
    arguments += ["--output", str(cell / "ssim.json")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    (cell / "bf16" / "manifest.json").unlink()
    script = [sys.executable, str(scripts / "score.py"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_one_image_has_a_value_and_no_interval(tmp_path):
    found = np.random.default_rng(0).integers(0, 240, (1, 16, 16, 3), dtype=np.uint8)
    for name, picture in (("bf16", found), ("w4", found + np.uint8(5))):
        images.write_images(tmp_path / name, [(picture, ["a"], [0])], {"method": name})
    manifests = [tmp_path / "w4" / "manifest.json", "--baseline", tmp_path / "bf16" / "manifest.json"]
    for metric in ("psnr", "ssim"):
        score_of_one = run(metric, tmp_path / "x.json", "--images", *manifests)
        assert score_of_one["status"] == "ok" and score_of_one["value"] > 0 and score_of_one["low"] is None
        assert "no interval: it needs at least two images" in score_of_one["reason"]


def test_small_images_have_no_ssim_and_all_else(tmp_path):
    for name, level in (("bf16", 0), ("w4", 5)):
        found = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3) // 2 + np.uint8(level)
        images.write_images(tmp_path / name, [(found, ["a", "b"], [0, 1])], {"method": name})
    manifests = [tmp_path / "w4" / "manifest.json", "--baseline", tmp_path / "bf16" / "manifest.json"]
    found = run("ssim", tmp_path / "x.json", "--images", *manifests)
    assert (found["status"], found["value"]) == ("unsupported", None) and "images are 8 x 8" in found["reason"]
    assert run("psnr", tmp_path / "x.json", "--images", *manifests)["value"] == pytest.approx(20 * np.log10(51))


@pytest.mark.filterwarnings("ignore")
def test_a_value_beyond_numbers_is_no_value(tmp_path):
    here = features(tmp_path / "here.json", 30, shift=1e15)
    reference = features(tmp_path / "r.json", 30, seed=1)
    found = score.score_features("kid", {"resamples": 0}, here, reference)
    assert (found["status"], found["value"]) == ("unsupported", None) and "not a finite number" in found["reason"]


@pytest.mark.filterwarnings("ignore")
def test_an_interval_with_one_bound_beyond_numbers_is_none(tmp_path):
    # The texts are so improbable that the perplexity of some resamples overflows, and that of the sample does not.
    items = [{"nll": nll, "tokens": 1, "correct": 0} for nll in (500.0, 600.0, 700.0, 800.0, 900.0)]
    predictions.write(tmp_path, items, {})
    found = score.score_predictions("perplexity", {"resamples": 200}, tmp_path / "manifest.json", None, True)
    assert found["status"] == "ok" and found["value"] > 1e300 and found["low"] is found["high"] is None
    assert "one of its bounds is not a finite number" in found["reason"]
