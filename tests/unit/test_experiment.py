"""Configuration: entries are completed with defaults, and every mistake gives one clear sentence."""

import copy
import dataclasses

import pytest
import yaml

from quantwatt import registry
from quantwatt.artifacts import linked_folders
from quantwatt.artifacts.errors import DataError
from quantwatt.config import cross_checks, experiment, schemas
from quantwatt.data import prompts
from quantwatt.jobs import fingerprints
from quantwatt.quantize.solvers import BlockSolver, ExternalSolver
from quantwatt.registry import schema

ROOT = experiment.ROOT
EXPERIMENTS = sorted(path.stem for path in experiment.EXPERIMENTS.glob("*.yaml"))


@pytest.fixture
def raw():
    return yaml.safe_load((experiment.EXPERIMENTS / "embedded.yaml").read_text())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_valid(name):
    loaded = experiment.load_experiment(name)
    assert len(loaded["cells"]) == len(loaded["models"]) * len(loaded["methods"]) * len(loaded["samplings"])


@pytest.mark.parametrize("name", ["imagenet64-brecq", "embedded-digits"])
def test_a_study_of_solvers_rounds_to_the_same_grids_without_one(name):
    methods = experiment.load_experiment(name)["methods"].values()
    grids = [{key: own for key, own in method.items() if key != "solver"} for method in methods]
    solvers = [method["solver"] and method["solver"]["name"] for method in methods]
    rounded = [grid for grid, solver in zip(grids, solvers, strict=True) if solver == "rtn"]
    solved = [grid for grid, solver in zip(grids, solvers, strict=True) if solver not in (None, "rtn")]
    assert solved and all(grid in rounded for grid in solved)


def test_shipped_config_shows_every_key_with_its_default():
    shipped = experiment.read_yaml(ROOT / "config.yaml", "config.yaml")
    assert experiment.load_config({}) == experiment.load_config(shipped) == shipped


def test_defaults_are_filled_in_and_the_input_is_untouched(raw):
    before = copy.deepcopy(raw)
    loaded = experiment.check_experiment(raw, "x.yaml")
    assert raw == before
    assert loaded["methods"]["gptq-w4a8"]["solver"]["damping"] == 0.01
    assert loaded["methods"]["float32"]["weights"] is None
    assert loaded["samplings"]["steps-20"]["negative_prompt"] == ""


def test_every_default_of_an_experiment_may_be_written_out():
    short = yaml.safe_load((experiment.EXPERIMENTS / "embedded-mixdq.yaml").read_text())
    known = schema("experiment")["properties"]
    defaults = {key: copy.deepcopy(own["default"]) for key, own in known.items() if "default" in own}
    assert {"reference", "classifier"} <= defaults.keys() - short.keys()
    assert experiment.check_experiment(defaults | short, "x.yaml") == experiment.check_experiment(short, "x.yaml")


def change(raw, path, value):
    *parents, last = path.split(".")
    for key in parents:
        raw = raw[key]
    if value is None:
        del raw[last]
    else:
        raw[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("methodz", {}, ["unknown key 'methodz'", "'methods'"]),
        ("methods.rtn-w4.weights.bitz", 4, ["methods.rtn-w4.weights", "'bitz'", "did you mean 'bits'"]),
        ("methods.rtn-w4.solver.name", "gtpq", ["methods.rtn-w4.solver.name", "'gtpq'", "did you mean 'gptq'"]),
        ("methods.gptq-w4a8.solver.dampening", 0.1, ["methods.gptq-w4a8.solver", "did you mean 'damping'"]),
        ("methods.rtn-w4.weights.bits", "four", ["methods.rtn-w4.weights.bits", "'four'"]),
        ("methods.rtn-w4.weights.bits", 5, ["methods.rtn-w4.weights.bits", "5 is none of 2, 3, 4, 8"]),
        ("methods.rtn-w4.weights.format", "int", ["methods.rtn-w4.weights.format", "integer"]),
        ("methods.rtn-w4.weights.granularity", "group", ["rtn-w4.weights.group_size", "missing"]),
        ("methods.rtn-w4.weights.group_size", 64, ["rtn-w4.weights.group_size", "granularity 'group'"]),
        (
            "methods.rtn-w4.weights",
            {"format": "torchao", "configuration": "int8-dynamic", "group_size": 64},
            ["rtn-w4.weights", "only int4-weight-only has groups"],
        ),
        ("measuring", {"block_z": 4}, ["measuring", "unknown key 'block_z'", "did you mean 'block_s'"]),
        ("measuring", {"samplings": ["steps-2"]}, ["there is no sampling 'steps-2'", "steps-20"]),
        ("measuring", {"idle_w": 4}, ["measuring.idle_w", "set it in config.yaml"]),
        ("study", "sd35-large", ["study", "sd35-large-energy"]),
        ("methods.float32", {"solver": {"name": "rtn"}}, ["methods.float32.solver", "nothing to quantize"]),
        ("methods.rtn-w8a8.activations.bits", 16, ["methods.rtn-w8a8.activations.bits", "16"]),
        ("methods.nf4.transforms", [{"name": "smothing"}], ["nf4.transforms.0.name", "did you mean 'smoothing'"]),
        ("baseline", "float16", ["baseline", "'float16'", "'float32'"]),
        ("baseline", "nf4", ["baseline", "is quantized"]),
        ("samplings.steps-20.steps", "many", ["samplings.steps-20.steps", "a whole number", "'many'"]),
        ("samplings.steps-20.steps", 0, ["samplings.steps-20.steps", "0"]),
        ("samplings.steps-20.images", 600, ["samplings.steps-20.images", "600", "has 512"]),
        (
            "samplings.steps-20.prompts",
            "resources/prompts/shape-test.txt",
            ["prompts", "does not exist", "shapes-test.txt"],
        ),
        ("samplings.steps-20.prompts", "resources/{model}.txt", ["steps-20.prompts", "braces as wildcards"]),
        ("models.tiny-sd3.path", "resources/models/tiny-sd", ["models.tiny-sd3.path", "resources/models/tiny-sd3"]),
        ("models.tiny-sd3.family", "sd4", ["models.tiny-sd3.family", "known: consistency, diffusers"]),
        ("models.tiny-sd3.hub", "a/b", ["models.tiny-sd3", "give either 'path', or 'hub' with 'revision'"]),
        ("judge.model", "local-dir:resources/models/juge", ["judge.model", "does not exist", "resources/models/judge"]),
        ("methods.gptq-w4a8.activations.dynamic", False, ["gptq-w4a8.activations.granularity", "set 'tensor'"]),
        ("methods.nf4.solver", {"name": "auto-gptq"}, ["nf4.weights.format", "'auto-gptq'", "integer"]),
        (
            "methods.gptq-w4a8.weights",
            {"format": "bitsandbytes-int8"},
            ["gptq-w4a8.solver.name", "'gptq'", "bitsandbytes-int8", "use rtn"],
        ),
        ("metrics.fidd", {}, ["metrics", "'fidd'", "did you mean 'fid'"]),
        ("metrics.fid", {"resample": 3}, ["metrics.fid", "'resample'", "'resamples'"]),
        ("calibration", None, ["calibration", "missing", "gptq-w4a8"]),
        ("reference", None, ["reference", "missing", "fid"]),
        ("models", None, ["'models' is missing"]),
    ],
)
def test_a_mistake_is_refused_by_file_entry_and_key(raw, path, value, words):
    change(raw, path, value)
    with pytest.raises(experiment.ConfigurationError) as caught:
        experiment.check_experiment(raw, "resources/experiments/mine.yaml")
    sentence = str(caught.value)
    assert sentence.startswith("resources/experiments/mine.yaml: ") and "\n" not in sentence
    for word in words:
        assert word in sentence


def test_unknown_experiment_and_unknown_config_key():
    with pytest.raises(experiment.ConfigurationError, match="'embeded'.*did you mean 'embedded'"):
        experiment.load_experiment("embeded")
    with pytest.raises(experiment.ConfigurationError, match="config.yaml: unknown key 'experimnt'.*'experiment'"):
        experiment.load_config({"experimnt": "embedded"})
    with pytest.raises(experiment.ConfigurationError, match="config.yaml: measuring.blocks: expected a whole number"):
        experiment.load_config({"measuring": {"blocks": "eight"}})
    with pytest.raises(experiment.ConfigurationError, match="measuring.idle_w: 70 W idle is not below full_w, 65 W"):
        experiment.load_config({"measuring": {"idle_w": 70}})
    with pytest.raises(experiment.ConfigurationError, match="inception_weights: 'nowhere.pt' does not exist"):
        experiment.load_config({"inception_weights": "nowhere.pt"})


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("methods:\n  nf4: {}\n  nf4: {}\n")
    with pytest.raises(experiment.ConfigurationError, match="twice.yaml: line 3: the key 'nf4' stands twice"):
        experiment.read_yaml(path, "twice.yaml")
    path.write_text("methods: [1, 2\n")
    with pytest.raises(experiment.ConfigurationError, match="twice.yaml: line 2"):
        experiment.read_yaml(path, "twice.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nested: &a [*a]\n", "nested too deeply, or too many."),  # a list that holds itself
        ("a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
        ), "nested too deeply, or too many."),  # 9^9 words
        ("models: !!python/object/apply:os.system [true]\n", "a text begins with !, which means a tag in YAML"),
        ("description: !!timestamp 2026-11-22\n", "datetime.date(2026, 11, 22) is neither text nor number"),
        ("methods: {1: {}}\n", "methods: the key 1 must be a short printable string; quote or rename it."),
        ("samplings: {a: {seed: 18446744073709551616}}\n", "samplings.a.seed: the number has more than 64 bits."),
        ('description: "\\0"\n', "description: '\\x00' contains a control character."),
    ],
)  # fmt: skip
def test_what_yaml_can_say_and_an_experiment_cannot(tmp_path, text, sentence):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(experiment.ConfigurationError) as caught:
        experiment.check_experiment(experiment.read_yaml(path, "x.yaml"), "x.yaml")
    assert str(caught.value).startswith("x.yaml: ") and sentence in str(caught.value)


def test_a_password_in_an_address_is_not_repeated(raw):
    raw["models"]["tiny-sd3"] = {"family": "sd3", "hub": "https://me:secret@huggingface.co/a/b?token=secret"}
    assert "secret" not in sentence_of(raw)
    raw["calibration"]["prompts"] = "https://secret@example.org/a.txt?key=secret&more=secret"
    assert "secret" not in sentence_of(raw)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("embedded", ["evaluation"]),
        ("embedded-mixdq", ["evaluation-tiny-sdxl"]),
        ("embedded-digits", ["evaluation-tiny-consistency"]),
        ("embedded-text", ["evaluation-tiny-distilbert", "evaluation-tiny-gpt2"]),
        ("sdxl-turbo-mixdq", []),
    ],
)
def test_a_report_shows_the_evaluation_of_its_own_models(name, files):
    found = fingerprints.evaluations(experiment.load_experiment(name)["models"])
    assert found == [f"resources/models/{file}.json" for file in files]


def test_fingerprint_sees_content_and_not_dates(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/small").write_bytes(b"a" * 50)
    first = fingerprints.fingerprint("m")
    (tmp_path / "m/small").touch()
    assert fingerprints.fingerprint("m") == first
    (tmp_path / "m/small").write_bytes(b"a" * 49 + b"c")
    second = fingerprints.fingerprint("m")
    (tmp_path / "m/large").write_bytes(b"b" * 500)
    assert len({first, second, fingerprints.fingerprint("m"), fingerprints.fingerprint("m/small")}) == 4


def test_a_fingerprint_reads_the_middle_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(70_000_000)
    first = fingerprints.fingerprint("large")
    with (tmp_path / "large").open("r+b") as file:
        file.seek(35_000_000)
        file.write(b"1")
    assert fingerprints.fingerprint("large") != first


def test_linked_files_and_folders_count_and_a_loop_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    for name in ("blobs/0a", "elsewhere/deep/weights", "m/plain"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    (tmp_path / "m/linked").symlink_to(tmp_path / "blobs/0a")  # as the hub's snapshots
    (tmp_path / "m/unet").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "m/loop").symlink_to(tmp_path / "m")
    (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "m/nowhere").symlink_to(tmp_path / "none")
    assert linked_folders.names(tmp_path / "m") == ["linked", "plain", "unet/deep/weights"]
    found = [(fingerprints.fingerprint("m"), fingerprints.listing("m"))]
    for name, text in (("blobs/0a", "bc"), ("elsewhere/deep/weights", "bcd")):
        (tmp_path / name).write_text(text)
        found.append((fingerprints.fingerprint("m"), fingerprints.listing("m")))
    assert len(set(found)) == len({content for content, _ in found}) == len({names for _, names in found}) == 3


def test_what_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    with pytest.raises(DataError, match="gone: cannot be read: No such file"):
        fingerprints.fingerprint(".", ["gone"])


def test_a_listing_sees_names_and_sizes_and_not_dates(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    pictures = tmp_path / "train"
    for name in ("n01/a.jpg", "n02/b.jpg"):
        (pictures / name).parent.mkdir(parents=True)
        (pictures / name).write_bytes(b"a" * 50)
    found = [fingerprints.listing("train")]
    (pictures / "n01/a.jpg").touch()
    assert fingerprints.listing("train") == found[0]
    (pictures / "n01/a.jpg").write_bytes(b"a" * 51)
    found.append(fingerprints.listing("train"))
    (pictures / "n01/a.jpg").rename(pictures / "n02/a.jpg")
    found.append(fingerprints.listing("train"))
    (pictures / "n02/c.jpg").write_bytes(b"")
    found.append(fingerprints.listing("train"))
    assert len(set(found)) == 4


@pytest.mark.parametrize("kind", ["solvers", "transforms"])
def test_a_schema_says_whether_its_module_reads_calibration_data(kind):
    names = registry.names(kind)
    assert names
    for name in names:
        schema, module = schemas.schema(f"{kind}/{name}"), registry.load(kind, name)
        plugin = module.Solver if kind == "solvers" else module.Transform
        external = issubclass(plugin, ExternalSolver)
        assert schema.get("x-external", False) == external
        assert schema.get("x-needs-calibration", False) == (
            external or bool(plugin.NEEDS) or issubclass(plugin, BlockSolver)
        )
        fields = {field.name for field in dataclasses.fields(plugin)} - schema["properties"].keys()
        assert fields <= {"held_out"} and schema["properties"].keys() - {"name"} <= plugin.__dataclass_fields__.keys()


@pytest.fixture
def raw_text():
    return yaml.safe_load((experiment.EXPERIMENTS / "embedded-text.yaml").read_text())


def sentence_of(raw):
    with pytest.raises(experiment.ConfigurationError) as caught:
        experiment.check_experiment(raw, "mine.yaml")
    return str(caught.value)


def test_text_models_walk_with_texts_of_their_own(raw_text):
    loaded = experiment.check_experiment(raw_text, "mine.yaml")
    assert loaded["kind"] == "text" and {cell["kind"] for cell in loaded["cells"]} == {"text"}
    sampling = loaded["samplings"]["held-out"]
    assert sampling["new_tokens"] == 32 and sampling["items"] is None
    assert experiment.for_model(sampling, "tiny-gpt2")["texts"] == "resources/texts/manuals-test.txt"
    assert experiment.for_model(loaded["calibration"], "tiny-distilbert")["texts"].endswith("reviews-calibration.tsv")


def test_cells_of_images_are_what_they_were(raw):
    loaded = experiment.check_experiment(raw, "mine.yaml")
    assert loaded["kind"] == "image" and set(loaded["cells"][0]) == {"model", "method", "sampling"}


def test_images_and_texts_do_not_mix(raw, raw_text):
    raw_text["models"] |= raw["models"]
    assert sentence_of(raw_text) == (
        "mine.yaml: models: 'tiny-sd3' makes images and 'tiny-distilbert' reads text; put them into two experiments."
    )


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("samplings.held-out.steps", 20, ["samplings.held-out", "unknown key 'steps'"]),
        ("samplings.held-out.texts.tiny-gpt2", None, ["held-out.texts", "none for model 'tiny-gpt2'"]),
        ("samplings.held-out.texts.tiny-gpt3", "x", ["no model 'tiny-gpt3'", "did you mean 'tiny-gpt2'"]),
        ("calibration.texts", "resources/texts/review-test.tsv", ["calibration.texts", "reviews-test.tsv"]),
        ("calibration.texts", "data/own.tsv", ["calibration.texts", "put it there (mine.yaml says what it holds)"]),
        ("metrics.psnr", {}, ["metrics.psnr", "a metric of images"]),
        ("methods.fp16.dtype", "half", ["methods.fp16.dtype", "'half' is none of float32, float16"]),
        ("methods.fp16-autocast.autocast", "float8", ["fp16-autocast.autocast", "is none of"]),
        ("methods.fp16.compile", True, ["methods.fp16.compile", "texts of every length"]),
        ("models.tiny-gpt2.text_encoder_3", False, ["models.tiny-gpt2", "unknown key 'text_encoder_3'"]),
    ],
)
def test_a_mistake_in_an_experiment_of_texts_is_refused(raw_text, path, value, words):
    change(raw_text, path, value)
    sentence = sentence_of(raw_text)
    assert all(word in sentence for word in words), sentence


def test_texts_metrics_are_refused_for_images(raw):
    raw["metrics"]["perplexity"] = None
    assert "metrics.perplexity: a metric of text models" in sentence_of(raw)


def test_data_that_a_rule_fetches_need_not_be_there(raw, raw_text):
    raw["samplings"]["steps-20"] |= {"prompts": "data/coco-2017/captions-5000.txt", "images": 5000}
    raw["reference"] = {"folder": "data/coco-2017/val2017.zip", "height": 64, "width": 64}
    experiment.check_experiment(raw, "mine.yaml")
    raw["samplings"]["steps-20"]["images"] = 5001
    assert "captions-5000.txt has 5000" in sentence_of(raw)
    raw["samplings"]["steps-20"] |= {"prompts": "data/coco-2017/val2017.zip", "images": 1}
    assert "samplings.steps-20.prompts: 'data/coco-2017/val2017.zip' does not exist" in sentence_of(raw)
    raw_text["calibration"]["texts"] = "data/sst2/tain.tsv"
    assert "did you mean 'data/sst2/train.tsv'." in sentence_of(raw_text)


def test_prompts_that_are_there_are_counted(raw, monkeypatch, tmp_path):
    """A user's own captions-5000.txt may have fewer."""
    monkeypatch.setattr(cross_checks, "ROOT", tmp_path)
    for name in ("resources", "workflow_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    prompts = tmp_path / "data/coco-2017/captions-5000.txt"
    prompts.parent.mkdir(parents=True)
    prompts.write_text("a caption\n" * 7)
    raw["samplings"]["steps-20"] |= {"prompts": "data/coco-2017/captions-5000.txt", "images": 8}
    assert "captions-5000.txt has 7" in sentence_of(raw)


@pytest.mark.parametrize("where", ["samplings.steps-20", "calibration"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ": the file is empty."),
        ("ein grüner Ring\n".encode("latin-1"), ": line 1, byte 7 (0xFC) is not UTF-8"),
        ("a cat\n".encode("utf-16-le"), ": line 1 holds a zero byte"),
        (b"a cat\tanimal\na dog\tanimal\n", ": line 1 has tabs"),
    ],
)
def test_files_of_prompts_are_read_before_any_job(raw, tmp_path, where, content, words):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    change(raw, f"{where}.prompts", str(path))
    assert f"{where}.prompts: {path}{words}" in sentence_of(raw)


def test_as_many_prompts_are_planned_as_a_job_reads(raw, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa cat\u2028on a mat\n\n\na dog\r\na bird\r\n\n")
    raw["samplings"]["steps-20"] |= {"prompts": str(path), "images": 4}
    assert f"{path} has {len(prompts.first(path, 9))}" in sentence_of(raw)
    raw["samplings"]["steps-20"]["images"] = 3
    experiment.check_experiment(raw, "mine.yaml")
    assert capsys.readouterr().err.count("3 blank lines left out") == 1


@pytest.mark.parametrize("where", ["samplings.held-out", "calibration"])
def test_files_of_texts_are_read_before_any_job(raw_text, tmp_path, where):
    """Each as the families of its models read it: a table without known headings may be running text."""
    texts = tmp_path / "texts.tsv"
    both = {"tiny-distilbert": str(texts), "tiny-gpt2": "resources/texts/manuals-test.txt"}
    texts.write_text("comment\tlabel\ngood\t1\n")
    change(raw_text, f"{where}.texts", both)
    assert f"{where}.texts: {texts}: line 1 has tabs" in sentence_of(raw_text)
    change(raw_text, f"{where}.texts", {**both, "tiny-distilbert": "resources/texts/reviews-test.tsv"})
    raw_text = copy.deepcopy(raw_text)
    change(raw_text, f"{where}.texts.tiny-gpt2", str(texts))
    experiment.check_experiment(copy.deepcopy(raw_text), "mine.yaml")
    texts.write_bytes("grün".encode("latin-1"))
    assert f"{where}.texts: {texts}: line 1, byte 3 (0xFC) is not UTF-8" in sentence_of(raw_text)
