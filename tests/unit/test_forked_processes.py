"""A measured process that is forked is as clean as one with an interpreter of its own."""

import json
import sys
import types
from pathlib import Path

import pytest

from quantwatt.artifacts import manifest
from quantwatt.measuring import processes

MODEL = manifest.PROJECT / "resources/models/tiny-sd3"
# Runs fresh_process.py with another task: draw an image and tell what the process is like.
PROBE = """
import hashlib, os, sys, threading, time
from quantwatt.measuring import fresh_process
from quantwatt.jobs import command

def measure(task):
    before = state()
    import torch
    from quantwatt.measuring import instruments
    from quantwatt.models.families import load_family
    from quantwatt.models.sampling import Drawing
    instruments.set_threads(task["threads"])
    settings = {"family": "sd3", "dtype": "float32", "text_encoder_3": False, "max_sequence_length": 1}
    family = load_family("sd3")
    pipeline = family.load(settings, task["model"])
    if task.get("telling"):
        fresh_process.tell(modules=sorted(sys.modules))
    drawing = Drawing(steps=2, guidance=3.0, height=64, width=64)
    images = family.generate(pipeline, ["a large red circle"], [0], drawing)
    return {"status": "ok", "before": before, "images": hashlib.sha256(images.tobytes()).hexdigest(),
            "threads": torch.get_num_threads(), "torch threads": len(os.listdir(TASKS)),
            "environment": {name: os.environ[name] for name in os.environ if name != "PYTEST_CURRENT_TEST"},
            "modules": sorted(sys.modules)}

TASKS = "/proc/self/task"

def state():
    torch = sys.modules.get("torch")
    return {"threads": len(os.listdir(TASKS)), "python threads": threading.active_count(), "folder": os.getcwd(),
            "cuda": bool(torch and torch.cuda.is_initialized()),
            "default type": torch and str(torch.get_default_dtype()),
            "gradients": torch and torch.is_grad_enabled(), "modules": len(sys.modules)}

fresh_process.measure = measure
command.end_with_parent()
command.run(lambda: fresh_process.main(sys.argv[1:]))
"""


@pytest.fixture
def probe(tmp_path, monkeypatch):
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "python").write_text(
        f"#!{sys.executable}\nimport os, sys\nos.execv({sys.executable!r}, [{sys.executable!r}, "
        f"{str(tmp_path / 'probe.py')!r}, *sys.argv[3:]])\n"
    )  # in place of `python -m MODULE ...`
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    bar = types.SimpleNamespace(update=lambda line: json.loads(line) if line.startswith("{") else {})
    with processes.Processes(tmp_path, bar) as started:
        yield started


TASK = {"memory": False, "model": str(MODEL), "checkpoints": {}, "threads": 1}


def test_a_fork_draws_the_same_image_from_the_same_state(probe):
    first, fresh, second = probe.forked(TASK), probe.fresh({**TASK, "telling": True}), probe.forked(TASK)
    for forked in (first, second):
        for key in ("images", "threads", "torch threads", "environment"):
            assert forked[key] == fresh[key]
        assert forked["before"]["threads"] == forked["before"]["python threads"] == 1
        assert forked["before"]["folder"] == fresh["before"]["folder"]
        state = [forked["before"][key] for key in ("cuda", "default type", "gradients")]
        assert state == [False, "torch.float32", True]  # torch is there, and has done nothing
    assert second["before"]["modules"] > first["before"]["modules"] + 500  # all that the fresh one told is there
    assert first["before"]["modules"] > fresh["before"]["modules"]


def test_a_fork_that_is_killed_leaves_the_next_one_alone(probe):
    """The task's file is all that a fork gets: one whose model is not there fails, and the next does not."""
    with pytest.raises(Exception, match="failed; the error is printed above"):
        probe.forked({**TASK, "model": "nowhere"})
    assert probe.forked(TASK)["status"] == "ok"


def test_an_interrupted_measurement_leaves_no_process_behind(probe):
    probe.forked(TASK)
    server = probe.server.pid
    probe.__exit__(KeyboardInterrupt)
    assert not Path(f"/proc/{server}").exists()
