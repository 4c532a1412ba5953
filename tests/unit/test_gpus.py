"""Several GPUs in one machine: programs take distinct ones, wait for one, and give it back however they end."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantwatt import gpus, manifest

SCRIPTS = Path(gpus.__file__).parents[1]
UUIDS = [f"GPU-fa4e000{i}-0000-4000-8000-000000000000" for i in range(3)]
PROGRAM = """
import os, sys
from quantwatt import gpus
gpus.claim("cuda", every=sys.argv[1:] == ["every"])
print(os.environ.get(gpus.VISIBLE), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that gives this machine, for the test, so many GPUs in the driver's own list, and no one's choice."""
    for name in (gpus.VISIBLE, *gpus.OF_SLURM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def with_gpus(n):
        lines = "".join(f"echo {uuid}\n" for uuid in UUIDS[:n])
        query = " ".join(gpus.QUERY[1:])
        (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\n[ "$*" = "{query}" ] || exit 9\n{lines}')
        (tmp_path / "nvidia-smi").chmod(0o755)

    return with_gpus


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


def test_without_a_driver_or_on_the_processor_nothing_is_taken(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.count() == 1
    gpus.claim("cuda")
    machine(2)
    gpus.claim("cpu")
    assert gpus.VISIBLE not in os.environ and not (tmp_path / "quantwatt").exists()


def test_locks_are_kept_in_a_folder_of_the_users_own(machine, tmp_path):
    machine(1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "quantwatt").symlink_to("elsewhere")
    with pytest.raises(manifest.DataError, match="quantwatt: not a folder of this user's"):
        gpus.claim("cuda")
    assert not list((tmp_path / "elsewhere").iterdir())
