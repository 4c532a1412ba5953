"""Checks of the installation: Python and its packages, the compiler, conda and SLURM."""

import os
import shutil
import subprocess
import sys
from importlib import metadata

from quantwatt.jobs import machine
from tools.examination import MISSING, NOTE, OK

OLDEST = (3, 11)
PACKAGES = ("snakemake", "torch", "diffusers", "transformers", "safetensors", "numpy", "pandas", "jsonschema")
OPTIONAL = ("bitsandbytes", "torchao", "optimum-quanto", "nvidia-ml-py", "open_clip_torch")
IMPORT_S = 180


def python():
    version = f"{'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})"
    if sys.version_info[:2] < OLDEST:
        return MISSING, version, f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    return OK, version, ""


def environment():
    conda = os.environ.get("CONDA_PREFIX")
    if sys.prefix != sys.base_prefix:
        return OK, f"virtual environment {sys.prefix}", ""
    if conda and sys.prefix == conda:
        return OK, f"conda environment {sys.prefix}", ""
    return NOTE, "the system's Python", "run .venv/bin/python, which make report installs"


def packages():
    versions = {name: _version(name) for name in (*PACKAGES, *OPTIONAL)}
    absent = [name for name in PACKAGES if versions[name] is None]
    without = [name for name in OPTIONAL if versions[name] is None]
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "none"
    if absent:
        return MISSING, f"{installed}; not installed: {', '.join(absent)}", "install envs/requirements.txt"
    if without:
        return (
            NOTE,
            f"{installed}; not installed: {', '.join(without)}",
            "needed only by the formats and meters of the name",
        )
    return OK, installed, ""


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torch():
    """Check torch's build, and whether torch loads: in a separate process, which a broken build may crash."""
    build = machine.torch_build()
    if build is None:
        return MISSING, "not installed", "install envs/requirements.txt"
    kind = f"CUDA {build.cuda}" if build.cuda else f"ROCm {build.hip}" if build.hip else "the CPU"
    described = f"{build.version}, a build for {kind}"
    done = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True, timeout=IMPORT_S)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return MISSING, f"{described}; it does not load: {last}", "install torch and torchvision anew, of one build"
    return OK, described, ""


def compiler():
    """Check for a C compiler, which torch.compile and the fused CPU kernels need."""
    name = os.environ.get("CC") or next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), None)
    if name is None or not shutil.which(name.split()[0]):
        return NOTE, "no C compiler", "install gcc: without it compiled methods and fused CPU kernels are left out"
    return OK, shutil.which(name.split()[0]), ""


def conda():
    path = next(filter(None, map(shutil.which, ("conda", "mamba", "micromamba"))), None)
    return (OK, path, "") if path else (NOTE, "no conda", "needed for --sdm conda alone")


def slurm():
    commands = {name: shutil.which(name) for name in ("sbatch", "squeue", "sacct")}
    if not commands["sbatch"]:
        return NOTE, "no sbatch", "needed for --profile profiles/slurm alone"
    if _version("snakemake-executor-plugin-slurm") is None:
        return NOTE, "sbatch, without Snakemake's plugin", "pip install snakemake-executor-plugin-slurm"
    absent = [name for name, path in commands.items() if not path]
    return OK, "sbatch" + (f"; without {', '.join(absent)}" if absent else ", squeue, sacct"), ""
