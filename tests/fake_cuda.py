"""A machine with NVIDIA GPUs for the tests: a driver that is not there (tests/nvml/fakecuda.c), and a torch by name."""

import shutil
import subprocess
from pathlib import Path

import pytest

from quantwatt.jobs import cuda_driver

SOURCE = Path(__file__).parent / "nvml" / "fakecuda.c"
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc compiles the fake CUDA driver")


def uuid(board, slice_=False):
    return f"{'MIG' if slice_ else 'GPU'}-fa4e000{board}-0000-4000-8000-{int(slice_):012d}"


def build(folder):
    """Compile the driver into a folder."""
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", Path(folder) / "libcuda.so.1", SOURCE], check=True)


def install(monkeypatch, library, **fake):
    """Let this process, and those that it starts, find the driver of a folder; further keywords are FAKE_CUDA_*."""
    cuda_driver._ask.cache_clear()
    for name in (cuda_driver.VISIBLE, "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    for name, value in fake.items():
        monkeypatch.setenv(f"FAKE_CUDA_{name.upper()}", str(value))


def without_driver(monkeypatch, folder):
    """Let this process, and those that it starts, find no driver that loads, whatever the machine has."""
    install(monkeypatch, folder)
    (Path(folder) / "libcuda.so.1").touch()


def write_torch(folder, cuda, hip=None, version="2.9.0"):
    """A torch that can be found and not used, with the version.py that torch's own builds have."""
    package = Path(folder) / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "version.py").write_text(
        f"from typing import Optional\n\n__all__ = ['__version__', 'cuda']\n__version__ = {version!r}\ndebug = False\n"
        f"cuda: Optional[str] = {cuda!r}\nhip: Optional[str] = {hip!r}\n"
    )
