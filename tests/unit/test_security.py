"""External input is data only: no pickle is loaded, no file outside is read or written, no secret is repeated."""

import ast
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import preloaded
import pytest
from image_sets import read_images
from PIL import Image
from safetensors.numpy import save_file

import fetch as fetch_rule
import gather_images
import model
from quantwatt.artifacts import feature_files, images, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.data import datasets
from quantwatt.inference import checkpoint
from quantwatt.score import predictions

ROOT = experiment.ROOT
SCRIPTS = ROOT / "workflow_scripts"
MODELS = ROOT / "resources/models"
MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"]
WEIGHTS = "weights.safetensors"  # of a checkpoint in one file
UNPICKLING = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
EXECUTING = {"eval", "exec", "os.system", "os.popen", "pandas.read_pickle", "torch.jit.load", "torch.hub.load"}


def calls(tree):
    """(dotted name of what is called, {keyword: source}) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("path", sorted(SCRIPTS.rglob("*.py")), ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_no_source_unpickles_or_runs_a_models_code(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & UNPICKLING
    for name, words in calls(tree):
        last = name.rpartition(".")[2]
        assert name not in EXECUTING
        assert "trust_remote_code" not in words and words.get("allow_pickle", "False") == "False"
        assert words.get("shell", "False") == "False"
        if name == "torch.load":
            assert words["weights_only"] == "True"  # of checkpoints of its own training
        loads = last == "from_pretrained" and not any(part in name.lower() for part in ("tokenizer", "autoconfig"))
        if loads and "training" not in path.parts:
            assert words["use_safetensors"] == "True", f"{path}: {name}"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


BESIDE = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "model.ckpt", "open_clip_pytorch_model.bin")
LOAD = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from quantwatt import registry
from quantwatt.models.families import load_family
for family, settings, folder in json.loads(sys.argv[1]):
    try:
        if family == "judge":
            registry.load("extractors", "judge").load({"model": f"local-dir:{folder}"}, "cpu")
        else:
            load_family(family).load(settings, folder)
            load_family(family).load_denoiser(settings, folder)
        loaded = True
    except Exception as error:
        loaded = False
    print(json.dumps([loaded, opened]))
    opened.clear()
"""


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """([family, settings, folder] of copied models with pickles beside all weights, and again without safetensors)."""
    top = tmp_path_factory.mktemp("mined")
    text = experiment.load_experiment("embedded-text")["models"]["tiny-gpt2"]
    entries = []
    for kept in (True, False):
        for family, name, settings in (("sd3", "tiny-sd3", MODEL), ("gpt2", "tiny-gpt2", text), ("judge", "judge", {})):
            folder = top / str(kept) / name
            shutil.copytree(MODELS / name, folder)
            for weights in list(folder.rglob("*.safetensors")):
                for beside in BESIDE:
                    weights.with_name(beside).write_bytes(pickle.dumps(Bomb(top / "exploded")))
                if not kept:
                    weights.unlink()
            entries.append([family, settings, str(folder)])
    pickle.loads(pickle.dumps(Bomb(top / "works")))
    assert (top / "works").exists() and len(list(top.rglob("*.bin"))) > 10
    return top, entries


def test_a_pickle_beside_safetensors_is_never_opened_nor_read_in_their_place(mined):
    top, entries = mined
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "HF_HUB_OFFLINE": "1"}
    (top / "program.py").write_text(LOAD)
    command = [preloaded.jobs().python, top / "program.py", json.dumps(entries)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [loaded for loaded, _ in results] == [True] * 3 + [False] * 3
    opened = {Path(name).name for _, names in results for name in names}
    assert "model_index.json" in opened and not opened.intersection(BESIDE)
    assert not (top / "exploded").exists()


def tensors_file(header, data=b"\0" * 64, length=None):
    """The bytes of a safetensors file with any header, and any length told of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start=0, stop=64, dtype="F32", shape=(16,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


MALICIOUS = {
    "no header": b"",
    "huge header": tensors_file({"a": tensor()}, length=2**63),
    "header beyond the file": tensors_file({"a": tensor()}, length=10_000),
    "no JSON": tensors_file(b"{" * 64),
    "deep JSON": tensors_file(b'{"a":' * 100_000),
    "overlapping": tensors_file({"a": tensor(), "b": tensor()}),
    "hole": tensors_file({"a": tensor(0, 16, shape=[4]), "b": tensor(32, 64, shape=[8])}),
    "beyond the end": tensors_file({"a": tensor(0, 128, shape=[32])}),
    "backwards": tensors_file({"a": tensor(64, 0)}),
    "unknown type": tensors_file({"a": tensor(dtype="OBJECT")}),
    "other type": tensors_file({"a": tensor(dtype="BF16")}),
    "oversized shape": tensors_file({"a": tensor(shape=[2**31, 2**31, 2**31])}),
    "shape that overflows to fit": tensors_file({"a": tensor(shape=[2**62, 4, 16])}),
    "negative shape": tensors_file({"a": tensor(shape=[-4, -4])}),
    "truncated": tensors_file({"a": tensor()})[:-1],
    "more than it says": tensors_file({"a": tensor()}) + b"PK\3\4",
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_a_malicious_safetensors_file_is_refused_wherever_it_is_read(tmp_path, monkeypatch, kind):
    """Its sha256 is right: whoever made the file made the manifest, too."""
    folder = tmp_path / "model"
    for path in (MODELS / "tiny-sd3").rglob("*.*"):
        linked = folder / path.relative_to(MODELS / "tiny-sd3")
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.symlink_to(path)
    (folder / "transformer/diffusion_pytorch_model.safetensors").unlink()
    (folder / "transformer/diffusion_pytorch_model.safetensors").write_bytes(MALICIOUS[kind])
    entry = json.dumps({**MODEL, "path": str(folder)})
    with pytest.raises(DataError, match="not a safetensors file .*fetch the model again"):
        model.main(["--model", "m", "--settings", entry, "--output", str(tmp_path / "manifest.json")])
    assert not (tmp_path / "manifest.json").exists()


def test_a_sound_safetensors_file_is_not_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(tensors_file({"a": tensor()}))
    manifest.check_tensors(tmp_path / "a.safetensors", "")


def checkpoint_of(folder, layer, tensors):
    """A checkpoint whose files and sha256 agree, of one layer; returns its manifest."""
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    details = {
        "status": "ok", "reason": None, "model_settings": MODEL, "location": MODEL["path"],
        "layers": {"transformer_blocks.0.attn.to_q": layer},
        "files": manifest.describe_files(folder, [WEIGHTS]),
    }  # fmt: skip
    manifest.write_json(folder / "manifest.json", details)
    return folder / "manifest.json"


@pytest.mark.parametrize(
    "change", [{"in_features": 10**12}, {"out_features": 10**12}, {"parts": ["codes", "scale", "zero"]}]
)
def test_a_checkpoint_of_other_shapes_than_the_models_is_refused_before_they_are_made(tmp_path, change):
    name = "transformer_blocks.0.attn.to_q"
    weights = {"format": "integer", "bits": 8, "granularity": "channel", "symmetric": True}
    method = experiment.complete_method({"weights": weights}, "x.yaml", "m")
    layer = {"in_features": 128, "out_features": 128, "parts": ["codes", "scale"], "weights": method["weights"],
             "activations": None, "library": None}  # fmt: skip
    state = {f"{name}.codes": np.zeros((128, 128), np.uint8), f"{name}.scale": np.ones((128, 1), np.float32)}
    path = checkpoint_of(tmp_path / "c", layer | change, state)
    with pytest.raises(DataError, match=rf"not this model's weights \(at {name}\)"):
        checkpoint.load_pipeline(path)


def array_file(header, data=b"\0" * 64, magic=b"\x93NUMPY\x01\x00"):
    """The bytes of a file in numpy's format with any header."""
    text = header if isinstance(header, bytes) else repr(header).encode()
    return magic + struct.pack("<H", len(text)) + text + data


def array(shape=(16,), descr="<f4", **more):
    return {"descr": descr, "fortran_order": False, "shape": shape, **more}


def pickled(path):
    """An array of objects: what unpickling it would do."""
    file = io.BytesIO()
    np.save(file, np.array([Bomb(path)]), allow_pickle=True)
    return file.getvalue()


MALICIOUS_ARRAYS = {
    "nothing": b"",
    "other magic": array_file(array(), magic=b"\x93NUMPZ\x01\x00"),
    "other version": array_file(array(), magic=b"\x93NUMPY\x09\x00"),
    "archive": b"PK\x03\x04" + bytes(100),
    "pickle": pickle.dumps([1.0]),
    "objects": pickled("exploded"),
    "no dictionary": array_file(b"[" * 64),
    "deep header": array_file(b"[" * 9_000),
    "long header": array_file(b"[" * 60_000),
    "a call": array_file(b"__import__('os').system('touch exploded')"),
    "other keys": array_file(array(more=1)),
    "unknown type": array_file(array(descr="<q9")),
    "text": array_file(array(descr="<U16", shape=(1,))),
    "fields": array_file(array(descr=[("a", "<f4")])),
    "beyond the end": array_file(array(shape=(17,))),
    "oversized shape": array_file(array(shape=(2**31, 2**31, 2**31))),
    "shape that overflows to fit": array_file(array(shape=(2**62, 4, 16))),
    "negative shape": array_file(array(shape=(-4, -4))),
    "shape of no numbers": array_file(array(shape=("a",))),
    "truncated": array_file(array())[:-1],
    "more than it says": array_file(array()) + b"PK\3\4",
}


@pytest.mark.parametrize("kind", MALICIOUS_ARRAYS)
def test_a_malicious_array_is_refused(tmp_path, monkeypatch, kind):
    """Its sha256 is right, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "features-image.npy").write_bytes(MALICIOUS_ARRAYS[kind])
    files = manifest.describe_files(tmp_path, ["features-image.npy"])
    manifest.write_json(tmp_path / "features.json", {"status": "ok", "files": files})
    with pytest.raises(DataError, match="features-image.npy: not an array.*; delete .*features.json and run") as caught:
        feature_files.read_features(tmp_path / "features.json")
    assert "\n" not in str(caught.value) and not (tmp_path / "exploded").exists()


OUTSIDE = ("../secret.txt", "/etc/hostname", "shard-000/../../secret.txt", "..")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_lists_a_file_outside_its_folder_is_refused(tmp_path, name):
    folder = tmp_path / "images"
    (folder / "shard-000").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    found = {"sha256": manifest.sha256(tmp_path / "secret.txt"), "bytes": 6}
    path = folder / "manifest.json"
    listed = {"images": [{"file": name, **found}], "files": {name: found}}
    manifest.write_json(path, {"status": "ok", "n_images": 1, **listed})
    for read in (images.image_files, predictions.read):
        with pytest.raises(DataError, match="which is not in its folder; delete"):
            read(path)
    with pytest.raises(DataError, match="lists no features"):
        feature_files.read_features(path)  # of any name but their own


def test_a_pipe_or_a_device_in_the_place_of_a_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")  # opening it would wait for ever
    with pytest.raises(DataError, match="a.png: the file is missing"):
        manifest.verify_files(tmp_path / "manifest.json", {"a.png": {"sha256": "", "bytes": 0}})


def test_what_a_link_leads_to_is_neither_written_nor_removed(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "manifest.json").symlink_to(kept / "file")
    (folder / "shard-000").symlink_to(kept)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    images.write_images(folder, [(pixels, ["a"], [0])], {})
    assert [path.name for path in kept.iterdir()] == ["file"] and (kept / "file").read_text() == "mine"
    assert not (folder / "manifest.json").is_symlink() and len(read_images(folder / "manifest.json")) == 1
    (folder / "shard-000/00000.png").unlink()
    (folder / "shard-000/00000.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="00000.png: the file is missing"):
        read_images(folder / "manifest.json")


def test_nor_is_it_by_an_image_set_in_parts(tmp_path):
    kept, folder = tmp_path / "kept", tmp_path / "images"
    kept.mkdir()
    (kept / "00000.png").write_text("mine")
    folder.mkdir()
    for shard in ("shard-000", "shard-001"):
        (folder / shard).symlink_to(kept)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    images.write_images(folder, [(pixels, ["a"], [0])], {"provenance": {}}, range(1))
    assert not (folder / "shard-000").is_symlink()
    (folder / "shard-001").symlink_to(kept)
    gather_images.gather(folder, [0])
    assert len(read_images(folder / "manifest.json")) == 1
    assert (kept / "00000.png").read_text() == "mine"


def test_an_image_that_would_unpack_to_gigabytes_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "shard-000/00000.png"
    path.parent.mkdir()
    Image.new("1", (20_000, 20_000)).save(path)
    found = {"file": "shard-000/00000.png", **manifest.describe_files(tmp_path, ["shard-000/00000.png"]).popitem()[1]}
    manifest.write_json(tmp_path / "manifest.json", {"status": "ok", "n_images": 1, "images": [found]})
    with pytest.raises(DataError, match="00000.png: not a readable image"):
        read_images(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    "entry",
    [{"experiment": "../../elsewhere"}, {"experiment": "/tmp/x"}, {"experiment": "a;b"}, {"results": "a b"},
     {"results": "$(touch x)"}, {"results": "{model}"}, {"results": "-rf"}, {"results": "a\n"}, {"results": "~z/x"}],
)  # fmt: skip
def test_an_experiment_or_a_folder_that_a_shell_would_read_otherwise_is_refused(entry):
    [key] = entry
    with pytest.raises(experiment.ConfigurationError, match=f"config.yaml: {key}: "):
        experiment.load_config(entry)


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", ".hidden", "{model}", "-n", "a\n"])
def test_a_name_that_would_leave_the_results_is_refused(name):
    raw = experiment.read_yaml(experiment.EXPERIMENTS / "smoke.yaml", "x.yaml")
    for kind in ("models", "methods", "samplings"):
        named = {**raw, kind: {**raw[kind], name: next(iter(raw[kind].values()))}}
        with pytest.raises(experiment.ConfigurationError, match=f"x.yaml: {kind}: "):
            experiment.check_experiment(named, "x.yaml")


class Reflecting(BaseHTTPRequestHandler):
    """A hub that refuses, and repeats in its answer what it was sent."""

    def do_GET(self):
        told = f"refused, {self.headers.get('Authorization')}"
        Reflecting.heard.append(told)
        self.send_response(Reflecting.code)
        self.send_header("X-Error-Message", told)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(told.encode())

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("code", [401, 403, 404, 418])
def test_a_hub_that_repeats_the_token_does_not_bring_it_into_a_log(tmp_path, code):
    hub = {"family": "sd3", "hub": "somebody/model", "revision": "0" * 40, "text_encoder_3": False}
    Reflecting.code, Reflecting.heard = code, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Reflecting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "no_proxy": "127.0.0.1",
                   "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}  # fmt: skip
    command = [sys.executable, SCRIPTS / "model.py", "--model", "m", "--settings", json.dumps(hub), "--output",
               tmp_path / "manifest.json"]  # fmt: skip
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    server.shutdown()
    server.server_close()
    assert done.returncode == 1 and done.stderr.startswith("error: somebody/model at 000000000000: ")
    assert any("secret" in told for told in Reflecting.heard)  # it was asked, with the token
    assert "secret" not in done.stdout + done.stderr and not (tmp_path / "manifest.json").exists()


def test_an_address_of_data_is_shown_without_its_credentials(tmp_path):
    archive = datasets.Archive(("http://me:secret@127.0.0.1:1/a.zip?token=secret",), "0" * 64)
    with pytest.raises(DataError, match=r"from http://\*\*\*@127.0.0.1:1/a.zip\?\*\*\* \(") as caught:
        fetch_rule.fetch(tmp_path / "a.zip", archive, archive.sha256)
    assert "secret" not in str(caught.value)


def test_credentials_of_an_address_are_not_shown():
    shown = manifest.without_credentials("https://me:secret@a.org/b?token=secret&x=1 http://secret@c/d, and e?f=g")
    assert shown == "https://***@a.org/b?*** http://***@c/d, and e?f=g"
