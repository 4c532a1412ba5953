"""The doctor: what its table reports and advises, and that a broken installation is a row of the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_cuda
import pytest
import yaml

from quantwatt.config import experiment
from quantwatt.jobs import cuda_driver, machine
from quantwatt.measuring import cpus, meters
from tools import doctor as script
from tools import examination
from tools.examination import MISSING, NOTE, OK, hardware, installation, needs

SECRET = "correct-horse"
BROKEN = """
import sys
for name in ("numpy", "yaml", "snakemake"):
    sys.modules[name] = None
sys.path.insert(0, {scripts!r})
import doctor
sys.exit(doctor.main(["--experiment", "smoke", *sys.argv[1:]]))
"""


def test_a_broken_installation_is_a_row_and_no_traceback(tmp_path):
    fake_cuda.write_torch(tmp_path, "12.8")
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    home = tmp_path / "home"
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "HOME": str(home), "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": SECRET, "HF_ENDPOINT": f"https://me:{SECRET}@hub.example", "https_proxy": f"http://me:{SECRET}@p:1",
    }  # fmt: skip
    command = [sys.executable, "-c", BROKEN.format(scripts=str(Path(script.__file__).parent))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= examination.WIDTH
    assert any(
        line.startswith("torch          missing  2.9.0, a build for CUDA 12.8; it does not load:") for line in lines
    )
    assert any(line.startswith("configuration  missing  ModuleNotFoundError: import of yaml halted") for line in lines)
    assert any(line.startswith("meter estimate missing  ModuleNotFoundError: import of numpy halted") for line in lines)
    assert lines[-1].startswith("Missing: configuration, ")
    assert SECRET not in done.stdout and str(home) not in done.stdout and " ~/.cache/huggingface" in done.stdout


@pytest.mark.parametrize(
    ("word", "status", "said"),
    [
        ("device=cuda", OK, "device cuda, meter auto, results in results"),
        ("measuring={idle_w: 12}", OK, "device auto, meter auto, results in results"),
        ("device=gpu", MISSING, "--config: device: 'gpu' is none of auto, cpu, cuda; write cuda."),
        ("cuda", MISSING, "--config cuda: not of the form KEY=VALUE."),
    ],
)
def test_the_configuration_is_read_as_snakemake_reads_it(word, status, said):
    config, [finding] = script.configuration([word], "smoke")
    assert (finding.status, finding.found) == (status, said)
    assert "mend the installation" not in finding.remedy
    assert config is script.DEFAULTS or config["experiment"] == "smoke"


@pytest.mark.parametrize(("status", "code"), [(OK, 0), (NOTE, 0), (MISSING, 1)])
def test_the_exit_code_tells_whether_something_needed_is_missing(monkeypatch, capsys, status, code):
    monkeypatch.setattr(script, "general", lambda config: {"a check": lambda: (status, "found", "do this")})
    assert script.main([]) == code
    output = capsys.readouterr().out
    assert ("-> do this" in output) == (status != OK) and ("Missing: a check." in output) == (code == 1)
    assert script.main(["--json"]) == code
    assert json.loads(capsys.readouterr().out)[1] == {
        "check": "a check", "status": status, "found": "found", "remedy": "do this"
    }  # fmt: skip


def test_the_configuration_of_the_command_line_is_checked(monkeypatch, capsys):
    monkeypatch.setattr(script, "general", lambda config: {"device": lambda: (OK, config["device"], "")})
    assert script.main(["--config", "device=cuda"]) == 0
    assert "device         ok       cuda" in capsys.readouterr().out
    for words, said in ((["device"], "--config device: not of the form KEY=VALUE."), (["devise=cpu"], "'devise'")):
        assert script.main(["--config", *words]) == 1
        assert said in capsys.readouterr().out
    assert script.main(["--experiment", "smoek"]) == 1
    assert "there is no 'smoek'" in capsys.readouterr().out


def test_a_device_that_does_not_fit_is_missing_where_it_is_named(monkeypatch):
    monkeypatch.setattr(machine, "torch_build", lambda: machine.TorchBuild("2.9.0+cpu", None, None))
    status, found, _ = hardware.device({"device": "cuda"})
    assert status == MISSING and "torch 2.9.0+cpu is a build for the CPU" in found
    assert hardware.device({"device": "auto"})[:2] == (
        OK, "auto: cpu, because the installed torch 2.9.0+cpu is a build for the CPU"
    )  # fmt: skip
    assert hardware.device({"device": "cpu"}) == (OK, "cpu", "")


def test_the_driver_and_its_gpus_are_told(monkeypatch):
    gpu = {"uuid": "GPU-1", "name": "FAKE GPU", "capability": [9, 0]}
    monkeypatch.setattr(cuda_driver, "ask", lambda visible: cuda_driver.Answer((gpu,), (12, 4), None, True))
    status, found, _ = hardware.driver()
    assert status == OK and found == "runs CUDA 12.4 at most; FAKE GPU (compute capability 9.0)"
    assert "GPU-1" not in found


@pytest.mark.parametrize(("chosen", "status"), [("rapl", MISSING), ("auto", NOTE)])
def test_a_meter_that_may_not_be_read_names_file_and_command(monkeypatch, chosen, status):
    path = "/sys/class/powercap/intel-rapl:0/energy_uj"

    def denied(settings):
        raise meters.MeterUnavailable(f"{path} is not readable by this user: allow it with `sudo chmod a+r {path}`")

    monkeypatch.setattr(meters, "open_meter", denied)
    monkeypatch.setattr(machine.os, "access", lambda *given: False)
    config = {"device": "cpu", "meter": chosen, "measuring": {}}
    told = hardware.meter("rapl", config)
    assert told == (status, f"{path} is not readable by this user", f"allow it with `sudo chmod a+r {path}`")


def test_cpus_that_may_not_be_used_and_a_full_disk_are_said(monkeypatch, tmp_path):
    monkeypatch.setattr(cpus, "count", lambda: cpus.Cpus(64, 1.5, "1.5 CPUs by cpu.max", "/proc/stat"))
    assert hardware.processors()[0] == NOTE and hardware.processors()[2] == "run snakemake with --cores 1"
    assert hardware.disk(tmp_path / "not" / "yet")[0] == OK
    monkeypatch.setattr(hardware, "LEAST_FREE_GB", 1e9)
    assert hardware.disk(tmp_path)[0] == MISSING
    monkeypatch.setattr(hardware.os, "access", lambda *given: False)
    assert "not writable" in hardware.disk(tmp_path)[1]


def test_the_network_is_only_said(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:{SECRET}@127.0.0.1:1")
    [finding] = examination.examine({"network": hardware.network})
    assert finding.status == NOTE and "cannot be reached" in finding.found and SECRET not in finding.found


def test_a_compiler_conda_and_slurm_are_needed_only_sometimes(monkeypatch):
    monkeypatch.setattr(installation.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert [check()[0] for check in (installation.compiler, installation.conda, installation.slurm)] == [NOTE] * 3


@pytest.fixture(scope="module")
def smoke():
    return experiment.load_experiment("smoke"), experiment.load_config({})


def test_what_an_experiment_reads_is_looked_for(smoke, tmp_path, monkeypatch):
    entries, config = smoke
    findings = examination.examine(needs.checks(config, entries))
    assert {finding.status for finding in findings} == {OK}
    changed = entries | {"reference": {"folder": "data/imagenet/train"}}
    assert needs.data(changed)[0] == MISSING and "ImageNet may not be passed on" in needs.data(changed)[2]
    assert needs.data(entries | {"reference": {"folder": "data/nowhere"}})[1] == "data/nowhere: not there"
    changed = entries | {"calibration": {"prompts": "data/coco-2017/captions-train-64.txt"}}
    assert needs.data(changed)[0] == NOTE and "to be fetched" in needs.data(changed)[1]
    changed = entries | {"classifier": {"path": "resources/models/none"}}
    assert needs.weights(config, changed)[:2] == (MISSING, "classifier resources/models/none: not there")
    assert needs.weights(config | {"inception_weights": "download"}, entries)[0] == NOTE


def test_a_model_is_there_or_to_be_fetched_or_has_no_weights(tmp_path, monkeypatch):
    assert needs.model({"path": str(tmp_path / "none")})[0] == MISSING
    assert "no safetensors weights" in needs.model({"path": str(tmp_path)})[1]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub = {"hub": "someone/model", "revision": "abc"}
    assert needs.model(hub)[0] == NOTE
    folder = tmp_path / "models--someone--model" / "snapshots" / "abc" / "transformer"
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(20_000_000_000)  # of nothing, which takes no room
    assert needs.model(hub) == (OK, "someone/model, 20.00 GB of weights", "")
    large = {"models": {"large": {**hub, "dtype": "bfloat16"}}}
    monkeypatch.setattr(hardware, "memory_gb", lambda: (64.0, 60.0))
    assert needs.sizes({"device": "cpu"}, large) == (OK, "large takes 20.00 GB, a job about 28,000 MB", "")
    monkeypatch.setattr(hardware, "memory_gb", lambda: (16.0, 12.0))
    status, found, remedy = needs.sizes({"device": "cpu"}, large)
    assert status == NOTE and found.endswith("this machine has 16,000 MB") and "larger machine" in remedy


def test_a_bug_report_asks_for_the_doctors_output():
    template = yaml.safe_load((needs.ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    asked = {part["id"]: part for part in template["body"]}
    assert "workflow_scripts/tools/doctor.py" in asked["doctor"]["attributes"]["description"]
    assert asked["doctor"]["validations"]["required"]
