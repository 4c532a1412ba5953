"""The device that `auto` resolves to, and the one sentence if torch cannot compute on the named device."""

import functools
import subprocess
import sys
import time
from pathlib import Path

import fake_cuda
import pytest

from quantwatt.artifacts.errors import DataError
from quantwatt.jobs import cuda_driver, machine
from quantwatt.jobs.machine import TorchBuild

CUDA_12, CPU, ROCM = TorchBuild("2.9.0", "12.8", None), TorchBuild("2.9.0+cpu", None, None), TorchBuild("2", None, "6")
pytestmark = fake_cuda.needs_gcc


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    fake_cuda.build(folder)
    return folder


@pytest.fixture
def gpus(driver, monkeypatch):
    """A function that gives this machine a driver of CUDA; keywords are FAKE_CUDA_*."""
    yield functools.partial(fake_cuda.install, monkeypatch, driver)
    cuda_driver._ask.cache_clear()


def test_auto_asks_the_driver_and_no_device_file(gpus, monkeypatch, capsys):
    """WSL 2 and Jetson have no /dev/nvidiactl (utkuozdemir/nvidia_gpu_exporter#125)."""
    monkeypatch.setattr(Path, "exists", lambda path: False)
    gpus()
    assert machine.resolve_device("auto", CUDA_12) == "cuda" and capsys.readouterr().err == ""


def test_a_device_file_alone_is_no_gpu(monkeypatch, tmp_path, capsys):
    fake_cuda.without_driver(monkeypatch, tmp_path)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert machine.resolve_device("auto", CUDA_12) == "cpu" and capsys.readouterr().err == ""


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_are_none(gpus, monkeypatch, capsys, visible):
    gpus(count=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.resolve_device("auto", CUDA_12) == "cpu" and capsys.readouterr().err == ""
    assert f"no GPU for this program among CUDA_VISIBLE_DEVICES={visible}:" in machine.refusal("cuda", CUDA_12)


def test_auto_says_why_it_takes_the_cpu_of_a_machine_with_a_gpu(gpus, capsys):
    gpus()
    assert machine.resolve_device("auto", CPU) == "cpu"
    said = capsys.readouterr().err
    assert said.startswith("device: auto takes the CPU, although there is an NVIDIA driver. ") and said.count("\n") == 1
    assert "torch 2.9.0+cpu is a build for the CPU: install one with CUDA" in said


@pytest.mark.parametrize(
    ("build", "fake", "said"),
    [
        (CPU, {}, "torch 2.9.0+cpu is a build for the CPU"),
        (CUDA_12, {"init": 803}, "does not start: system has unsupported display driver / cuda driver combination"),
        (CUDA_12, {"init": 34}, "does not start: fake error (CUDA error 34)"),  # the stub that a container may have
        (CUDA_12, {"version": 11040}, "runs CUDA 11.4 at most, and the installed torch 2.9.0 needs CUDA 12.8"),
        (CUDA_12, {"count": 0}, "has no GPU for this program"),
        (CUDA_12, {"version": 12000}, None),  # a minor version is no obstacle
        (TorchBuild("2.9.0", "12", None), {"version": 13000}, None),
        (ROCM, {"init": 100}, None),  # torch calls AMD's GPUs cuda, too
    ],
)
def test_a_device_that_torch_cannot_use_is_one_sentence(gpus, build, fake, said):
    """autrainer/autrainer PR#96 (a CPU build), pytorch/pytorch#4546 (an old driver)."""
    gpus(**fake)
    assert machine.refusal("cpu", build) is None
    found = machine.refusal("cuda", build)
    assert found == said or (said in found and found.startswith("device: cuda, but ") and "\n" not in found)


def test_a_driver_that_hangs_is_given_up_and_not_waited_for(gpus, monkeypatch):
    """nvidia-smi in an uninterruptible call cannot be killed (leptonai/gpud PR#117)."""
    gpus(hang=1)
    monkeypatch.setattr(cuda_driver, "DEADLINE_S", 0.3)
    hanging = []
    kill = subprocess.Popen.kill
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: hanging.append(process))  # as if it did not die
    start = time.monotonic()
    assert "the NVIDIA driver has not answered for 0.3 s; restart the machine" in machine.refusal("cuda", CUDA_12)
    assert time.monotonic() - start < 30 and len(hanging) == 1
    kill(hanging[0])
    hanging[0].wait()


def test_a_driver_of_windows_that_is_not_on_the_loaders_path_is_named(monkeypatch, tmp_path):
    """microsoft/WSL#8587: torch would not find it either."""
    library = tmp_path / "libcuda.so.1"
    library.touch()
    monkeypatch.setattr(cuda_driver, "IN_WSL", str(library))
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda-that-is-not-there.so.1")
    told = cuda_driver.answer()
    assert told["found"] and told["reason"].endswith(f"not found by its name: add {tmp_path} to LD_LIBRARY_PATH")


PROGRAM = "import sys; from quantwatt.jobs import machine; print(machine.torch_build(), *sys.modules)"


@pytest.mark.parametrize(("cuda", "hip"), [(None, None), ("12.8", None), (None, "6.4")])
def test_torchs_build_is_read_without_torch(tmp_path, monkeypatch, cuda, hip):
    fake_cuda.write_torch(tmp_path, cuda, hip)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": f"{tmp_path}:{Path(machine.__file__).parents[2]}"},
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert found.startswith(f"TorchBuild(version='2.9.0', cuda={cuda!r}, hip={hip!r})")
    assert "torch" not in found.split(") ")[1].split()


def test_the_installed_torchs_build_is_torchs_own_word():
    import torch

    assert machine.torch_build() == TorchBuild(torch.__version__, torch.version.cuda, torch.version.hip)


def test_only_constants_of_torchs_version_py_are_read(tmp_path, monkeypatch):
    fake_cuda.write_torch(tmp_path, "12.8")
    init = tmp_path / "torch/__init__.py"
    with init.with_name("version.py").open("a") as file:
        file.write("for part in __version__:\n    pass\nhip = hip or None\n__version__ += '+cu128'\n")
    spec = machine.importlib.util.spec_from_file_location("torch", init)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: spec)
    assert machine.torch_build() == TorchBuild("2.9.0", "12.8", None)


def test_without_torch_the_sentence_names_the_environment(monkeypatch):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="torch is not installed: run this with the environment's Python"):
        machine.require("cpu")


def test_rocm_is_a_gpu_where_its_driver_is(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "AMD_DRIVER", tmp_path)
    assert machine.resolve_device("auto", ROCM) == "cuda" and machine.resolve_meter("auto", "cuda", ROCM) == "amdsmi"
    assert machine.resolve_meter("auto", "cuda", CUDA_12) == "nvml"
    monkeypatch.setattr(machine, "AMD_DRIVER", tmp_path / "none")
    assert machine.resolve_device("auto", ROCM) == "cpu"
