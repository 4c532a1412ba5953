"""The packages that a machine lacks which has PyTorch and the usual numerical packages only, as a folder of wheels.

Such a machine is taken to have Python 3.12 on x86-64 Linux, torch 2.11 for CUDA 13.0 with its triton, transformers,
accelerate, safetensors, numpy, pandas, scipy, matplotlib, pillow and nvidia-ml-py, with what these require.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT, atomic_path

PYTHON = "3.12"
GLIBC = (17, 24, 27, 28, 31, 34, 35)  # pip takes the version 2.N of a wheel word by word
MOST_MB = 60
REQUIREMENTS = PROJECT / "envs" / "requirements.txt"
NEEDED = """diffusers torchao bitsandbytes importlib_metadata zipp lazy-importer requests urllib3 certifi
charset-normalizer jsonschema jsonschema-specifications attrs referencing rpds-py greenlet pytest iniconfig
pluggy""".split()
# Of the stage "experiment": Snakemake, and the metrics.
WORKFLOW = """snakemake conda-inject connection_pool docutils dpath smart_open ConfigArgParse
snakemake-interface-common snakemake-interface-executor-plugins snakemake-interface-logger-plugins
snakemake-interface-report-plugins snakemake-interface-scheduler-plugins snakemake-interface-storage-plugins
humanfriendly sqlmodel tenacity throttler wrapt yte GitPython immutables nbformat platformdirs tabulate wcwidth
argparse-dataclass fastjsonschema gitdb jupyter_core SQLAlchemy traitlets smmap PuLP clean-fid open_clip_torch ftfy
torchvision scikit-learn joblib cloudpickle narwhals threadpoolctl scikit-image lazy-loader ImageIO tifffile""".split()
SOURCES = ["connection_pool"]  # of Python alone, and published as source alone
OF_TORCH = {"torchvision": "0.26.0"}  # built for torch 2.11
CUDA = "cuda130"


def pins() -> dict[str, str]:
    """{package: version} of what the project's tests run with, but for what belongs to the other PyTorch."""
    lines = (line.partition("==") for line in REQUIREMENTS.read_text().splitlines())
    return {name: version for name, found, version in lines if found} | OF_TORCH


def fetch(folder: Path, there: Collection[str] = ()) -> str:
    """Download the wheels and write FOLDER/wheels.txt, the list of them; return a sentence for the terminal.

    Wheels are written anew without their tests, bitsandbytes's without its libraries for other GPUs and versions of
    CUDA, PuLP's without its programs for other systems.

    Args:
        there: packages that the machine has, and that are left out.
    Raises:
        DataError: pip does not find one, or together they are too large to be carried.
    """
    known = pins()
    names = [name for name in NEEDED + WORKFLOW if name not in there]
    pip = [sys.executable, "-m", "pip"]
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    target = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms,
              "--platform=manylinux2014_x86_64"]  # fmt: skip
    with tempfile.TemporaryDirectory() as downloads:
        for command, part in (
            ([*pip, "download", *target, f"--dest={downloads}"], [name for name in names if name not in SOURCES]),
            ([*pip, "wheel", f"--wheel-dir={downloads}"], [name for name in names if name in SOURCES]),
        ):
            wanted = [f"{name}=={known[name]}" for name in part]
            done = subprocess.run([*command, "--quiet", "--no-deps", *wanted], capture_output=True, text=True)
            if wanted and done.returncode:
                errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr]
                raise DataError(f"pip found no wheel for Python {PYTHON}: {errors[-1].strip()}")
        for wheel in sorted(Path(downloads).glob("*.whl")):
            carry(wheel, folder / wheel.name)
    wheels = sorted(folder.glob("*.whl"))
    megabytes = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    lines = [f"{wheel.name} {hashlib.sha256(wheel.read_bytes()).hexdigest()}\n" for wheel in wheels]
    with atomic_path(folder / "wheels.txt") as path:
        path.write_text("".join(lines))
    if megabytes > MOST_MB:
        raise DataError(
            f"{folder}: its wheels have {megabytes:.0f} MB, more than {MOST_MB}: remove what is not needed."
        )
    return f"{folder}: {len(wheels)} wheels, {megabytes:.1f} MB, for Python {PYTHON}; wheels.txt lists them."


def carry(wheel: Path, target: Path) -> None:
    """Copy a wheel without its tests and its native programs for other devices."""
    with atomic_path(target) as path, zipfile.ZipFile(wheel) as source:
        unneeded = {name for name in source.namelist() if is_unneeded(name)}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as written:
            for entry in source.infolist():
                if entry.filename in unneeded:
                    continue
                content = source.read(entry)
                if entry.filename.endswith(".dist-info/RECORD"):
                    rows = content.decode().splitlines(keepends=True)
                    content = "".join(row for row in rows if row.partition(",")[0] not in unneeded).encode()
                written.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)


def is_unneeded(name: str) -> bool:
    parts = Path(name).parts
    if parts[-1].startswith("libbitsandbytes_"):
        return parts[-1].removesuffix(".so").rpartition("_")[2] not in (CUDA, "cpu")
    if "solverdir" in parts:
        return parts[-1] != "__init__.py" and not {"linux", "i64"} <= set(parts)
    return "tests" in parts
