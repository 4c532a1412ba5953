"""Pickles of tensors become safetensors in a process of their own, and nothing else is unpickled."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import sha256
from tools import convert_weights


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_tensors_come_back_under_their_names(tmp_path):
    shared = torch.arange(6.0)
    nested = {"state_dict": {"a.weight": shared.reshape(2, 3).T, "a.bias": shared[:2]}, "epoch": 3}
    torch.save(nested, tmp_path / "model.pth")
    convert_weights.main([str(tmp_path / "model.pth"), str(tmp_path / "model.safetensors")])
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == {"a.weight", "a.bias"} and torch.equal(found["a.weight"], shared.reshape(2, 3).T)


def test_a_pickle_of_anything_else_is_not_run(tmp_path):
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"a": Bomb(tmp_path / "exploded")}, protocol=2))
    with pytest.raises(DataError, match="no pickle of tensors alone"):
        convert_weights.convert(tmp_path / "model.pth", tmp_path / "model.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth"}


def test_a_file_of_another_sha256_is_refused(tmp_path):
    path = tmp_path / "vgg16-397923af.pth"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(DataError, match="397923af is expected"):
        convert_weights.main([str(path), str(tmp_path / "x.safetensors")])
    convert_weights.check(path, sha256(path)[:12].upper())
    with pytest.raises(DataError, match="there is no such file"):
        convert_weights.main([str(tmp_path / "nowhere.pth"), str(tmp_path / "x.safetensors")])


def test_the_process_that_reads_has_no_network(tmp_path):
    """Where the system allows it: containers may not."""
    import subprocess

    code = (
        "import socket\nfrom tools import convert_weights\n"
        "taken = convert_weights.without_network()\n"
        "names = [name for _, name in socket.if_nameindex()]\n"
        "print(taken, names)"
    )
    path = str(Path(convert_weights.__file__).parents[1])
    found = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert found.stdout in ("True ['lo']\n", found.stdout if found.stdout.startswith("False") else None), found
