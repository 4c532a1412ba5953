"""Several GPUs in one machine: jobs take distinct GPUs, wait for a free GPU, and release it however they end."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import fake_cuda
import pytest

from quantwatt.artifacts.errors import DataError
from quantwatt.jobs import cuda_driver, gpus

SCRIPTS = Path(gpus.__file__).parents[2]
UUIDS = [fake_cuda.uuid(board) for board in range(3)]
pytestmark = fake_cuda.needs_gcc
PROGRAM = """
import os, sys
from quantwatt.jobs import gpus
gpus.claim("cuda", every=sys.argv[1:] == ["every"])
print(os.environ.get(gpus.VISIBLE), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    fake_cuda.build(folder)
    fake_cuda.write_torch(folder / "packages", "12.8")
    return folder


@pytest.fixture
def machine(driver, tmp_path, monkeypatch):
    """A function that gives this machine, for the test, so many GPUs, and no one's choice."""
    monkeypatch.setattr(gpus.machine, "torch_build", lambda: gpus.machine.TorchBuild("2.9.0", "12.8", None))
    monkeypatch.setenv("PYTHONPATH", str(driver / "packages"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    yield lambda n, **fake: fake_cuda.install(monkeypatch, driver, count=n, **fake)
    cuda_driver._ask.cache_clear()


@pytest.fixture
def start():
    """Start a program that takes a GPU and keeps it until its input ends."""
    with contextlib.ExitStack() as running:

        def started(*arguments, **environment):
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments], text=True, env={**os.environ, **environment}, cwd=SCRIPTS,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            running.enter_context(process)
            running.callback(process.kill)  # before it is waited for
            return process

        yield started


def taken(process):
    """What CUDA will see in a program that has taken a GPU."""
    return process.stdout.readline().strip()


def waits(process):
    return process.stderr.readline().startswith("waiting for a GPU: other programs have ")


def test_programs_at_once_take_distinct_gpus(machine, start):
    machine(3)
    assert gpus.count() == 3
    assert sorted(taken(process) for process in [start() for _ in range(3)]) == UUIDS


@pytest.mark.parametrize("end", ["kill", "terminate", "close"])
def test_a_program_waits_for_a_gpu_until_another_ends_however_it_ends(machine, start, end):
    machine(2)
    first, second = start(), start()
    seen = {taken(first), taken(second)}
    third = start()
    assert waits(third) and third.poll() is None and seen == set(UUIDS[:2])
    first.stdin.close() if end == "close" else getattr(first, end)()
    assert taken(third) in seen


def test_one_gpu_goes_from_program_to_program(machine, start):
    machine(1)
    first = start()
    assert taken(first) == UUIDS[0]
    second = start()
    assert waits(second)
    first.kill()
    assert taken(second) == UUIDS[0]


def test_who_measures_all_gpus_has_them_alone_and_sees_them_all(machine, start):
    machine(2)
    one = start()
    assert taken(one) in UUIDS
    everything = start("every")
    assert waits(everything)
    one.kill()
    assert taken(everything) == "None"  # unset: all of them
    late = start()
    assert waits(late)
    everything.kill()
    assert taken(late) in UUIDS


def test_the_one_gpu_that_a_user_or_a_scheduler_chose_stands(machine, start):
    machine(2)
    chosen = [start(CUDA_VISIBLE_DEVICES="1") for _ in range(2)]
    assert [taken(process) for process in chosen] == ["1", "1"]
    assert taken(start(CUDA_VISIBLE_DEVICES="")) == ""
    assert taken(start(SLURM_JOB_GPUS="1")) == "None"
    assert {taken(start()), taken(start())} == set(UUIDS[:2])  # none of them holds a lock


def test_of_several_that_were_chosen_each_program_takes_one(machine, start, monkeypatch):
    machine(3)
    monkeypatch.setenv(gpus.VISIBLE, f"2, {UUIDS[0][:12]}")
    assert gpus.count() == 2
    first, second = start(), start()
    assert {taken(first), taken(second)} == {"2", UUIDS[0][:12]}
    assert waits(start())
    monkeypatch.delenv(gpus.VISIBLE)
    assert taken(start()) == UUIDS[1]  # the locks are the GPUs', whatever they are called


@pytest.mark.parametrize("n", [1, 4])
def test_what_is_printed_beside_the_answer_is_no_gpu(machine, start, n):
    """Such as nvidia-smi's "WARNING: infoROM is corrupted" (microsoft/pai#3756): 1 GPU is not 8, 4 are not none."""
    machine(n, noise="WARNING: infoROM is corrupted at gpu 0000:3B:00.0")
    assert gpus.count() == n
    assert taken(start()) == UUIDS[0]


def test_slices_of_a_gpu_are_taken_by_their_names(machine, start, monkeypatch):
    """CUDA shows a program one of them only, however many are named (ComparativeGenomicsToolkit/cactus#1618)."""
    machine(1, mig=1)
    assert gpus.choice() == {fake_cuda.uuid(0, True): fake_cuda.uuid(0, True)}
    names = [fake_cuda.uuid(0, True), "MIG-0f1e2d3c-0000-4000-8000-000000000000"]
    monkeypatch.setenv(gpus.VISIBLE, ",".join(names))
    assert gpus.count() == 2 and gpus.choice() == {name: name for name in names}


def test_a_name_after_one_that_names_none_is_no_gpu(machine, monkeypatch):
    machine(3)
    monkeypatch.setenv(gpus.VISIBLE, "2,7,0")
    assert gpus.choice() == {"2": UUIDS[2]} and gpus.count() == 1


def test_without_a_driver_or_on_the_processor_nothing_is_taken(machine, tmp_path, monkeypatch):
    machine(2)
    gpus.claim("cpu")
    fake_cuda.without_driver(monkeypatch, tmp_path)
    assert gpus.count() == 1
    with pytest.raises(DataError, match="no NVIDIA driver .*set device: cpu"):
        gpus.claim("cuda")
    assert gpus.VISIBLE not in os.environ and not (tmp_path / "quantwatt").exists()


def test_locks_are_kept_in_a_folder_of_the_users_own(machine, tmp_path):
    machine(1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "quantwatt").symlink_to("elsewhere")
    with pytest.raises(DataError, match="quantwatt: not a folder of this user's"):
        gpus.claim("cuda")
    assert not list((tmp_path / "elsewhere").iterdir())
