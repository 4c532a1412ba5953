"""A local conda channel that holds two packages: the Python that runs this, and its pip."""

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

SUBDIR = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}
PLACEHOLDER = "/opt/" + "placeholder_" * 20  # what linking replaces by the environment's prefix: longer than any
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__",
    "test",
    "idlelib",
    "turtledemo",
    "ensurepip",
    "site-packages",
    "dist-packages",
    "EXTERNALLY-MANAGED",
    "*.a",
)
X_Y = f"{sys.version_info.major}.{sys.version_info.minor}"
BUILD = "0"


def make(channel, staging, patchelf):
    """Write a channel.

    Args:
        channel: its folder.
        staging: an empty folder, in which the packages' files are laid out.
        patchelf: path of the program: the interpreter must find its shared library in whatever prefix it stands.
    """
    folder = channel / SUBDIR[platform.machine()]
    python, pip = staging / "python", staging / "pip"
    packages = dict([
        pack(folder, python, "python", platform.python_version(), [], stage_python(python, patchelf)),
        pack(folder, pip, "pip", importlib.metadata.version("pip"), [f"python {X_Y}.*"], stage_pip(pip)),
    ])  # fmt: skip
    for name, held in ((folder.name, packages), ("noarch", {})):
        (channel / name).mkdir(exist_ok=True)
        index = {"info": {"subdir": name}, "packages": held, "packages.conda": {}, "repodata_version": 1}
        (channel / name / "repodata.json").write_text(json.dumps(index))


def stage_python(root, patchelf):
    """Lay out the interpreter and its standard library; returns the files that name their prefix."""
    library = root / f"lib/python{X_Y}"
    shutil.copytree(sysconfig.get_path("stdlib"), library, symlinks=True, ignore=LEFT_OUT)
    (library / "site-packages").mkdir()
    (library / "site-packages/README.txt").write_text("Packages go here.\n")
    headers = Path(sysconfig.get_path("include"))
    if headers.is_dir():  # torch.compile's C++ includes them
        shutil.copytree(headers, root / "include" / headers.name)
    (root / "bin").mkdir()
    binaries = [shutil.copy2(os.path.realpath(sys._base_executable), root / f"bin/python{X_Y}")]
    for name in ("python", "python3"):
        (root / "bin" / name).symlink_to(f"python{X_Y}")
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        shared = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
        binaries.append(shutil.copy2(shared, root / "lib" / shared.name))
    for binary in binaries:
        binary.chmod(0o755)
        subprocess.run([patchelf, "--set-rpath", "$ORIGIN/../lib", binary], check=True)
    settings = sorted(library.glob("_sysconfigdata*.py"))
    for path in settings:
        path.write_text(path.read_text().replace(sys.base_prefix, PLACEHOLDER))
    return [path.relative_to(root).as_posix() for path in settings]


def stage_pip(root):
    """Likewise pip, as it is installed beside the interpreter."""
    site = root / f"lib/python{X_Y}/site-packages"
    for file in importlib.metadata.files("pip"):
        if file.parts[0].startswith("pip") and file.suffix != ".pyc":
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.locate(), site / file)
    command = root / "bin/pip"
    command.parent.mkdir()
    command.write_text(f"#!{PLACEHOLDER}/bin/python\nfrom pip._internal.cli.main import main\n\nmain()\n")
    command.chmod(0o755)
    return ["bin/pip"]


def pack(folder, root, name, version, depends, prefixed):
    """Pack the files under `root`; returns (file name, its entry in the channel's index).

    Args:
        prefixed: which of them hold PLACEHOLDER, as text.
    """
    files = sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file())
    listed = [{"_path": path.relative_to(root).as_posix()} | describe(path) for path in files]
    for entry in listed:
        if entry["_path"] in prefixed:
            entry |= {"prefix_placeholder": PLACEHOLDER, "file_mode": "text"}
    index = {"name": name, "version": version, "build": BUILD, "build_number": 0, "depends": depends,
             "subdir": folder.name}  # fmt: skip
    target = folder / f"{name}-{version}-{BUILD}.tar.bz2"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:bz2", compresslevel=1) as archive:
        for file, content in (("index", index), ("paths", {"paths": listed, "paths_version": 1})):
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"info/{file}.json")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for path in files:
            archive.add(path, path.relative_to(root))
    data = target.read_bytes()
    return target.name, index | {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def describe(path):
    """What a package says of one of its files."""
    data = path.read_bytes()  # of a link what it leads to
    kind = "softlink" if path.is_symlink() else "hardlink"
    return {"path_type": kind, "sha256": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
