"""A job starts without the libraries that it does not need."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = "torch._dynamo.eval_frame"  # the package itself waits, see lean_imports.py
HEAVY = {COMPILER, "torch.distributed.tensor", "bitsandbytes", "torchao", "torchvision", "sklearn", "scipy.optimize",
         "scipy.stats._stats_py"}  # fmt: skip
IN_A_JOB = """
import sys
from quantwatt.jobs import command


def main():
    {}
    print(*sys.modules)


command.run(main)
"""


def loaded(code, in_a_job=True):
    """Names of the modules that a program has imported once it has run `code`, one line of Python."""
    program = IN_A_JOB.format(code) if in_a_job else f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONPATH": str(ROOT / "workflow_scripts")}, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


LOAD = (
    "from quantwatt.models.families import load_family; "
    "settings = {'dtype': 'float32', 'text_encoder_3': False, 'max_sequence_length': 1, 'variant': None}; "
    "pipeline = load_family('sd3').load(settings, 'resources/models/tiny-sd3')"
)


def test_a_job_that_draws_starts_without_the_libraries_that_it_does_not_need():
    modules = loaded(LOAD)
    assert "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3" in modules
    assert not modules & HEAVY


def test_a_job_of_a_text_model_does_too():
    modules = loaded("from quantwatt.models.families import load_family; load_family('gpt2').meta_denoiser("
                     "'resources/models/tiny-gpt2')")  # fmt: skip
    assert "transformers.models.gpt2.modeling_gpt2" in modules
    assert not modules & HEAVY


def test_a_job_that_extracts_features_does_too():
    judge = "{'model': 'local-dir:resources/models/judge', 'pretrained': None}"
    modules = loaded(f"from quantwatt.score.extractors import judge; judge.load({judge}, 'cpu')")
    assert "open_clip" in modules
    assert not modules & (HEAVY - {"torchvision"})


def test_writing_a_checkpoint_imports_no_distributed_tensors(tmp_path):
    write = "import torch; from quantwatt.artifacts import shards; shards.write({!r}, {{'a': torch.ones(2)}})"
    assert not loaded(write.format(str(tmp_path))) & HEAVY


def test_what_was_left_out_is_there_when_it_is_asked_for():
    asked = (
        "import importlib.util, torch, torch._dynamo.config as config, scipy.stats, bitsandbytes, torchvision.models; "
        "assert importlib.util.find_spec('torchao') and torch.distributed.is_available(); "
        "assert config is torch._dynamo.config is sys.modules['torch._dynamo.config']; "
        "assert round(scipy.stats.beta.ppf(0.5, 2, 2), 6) == 0.5; "
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item() == 2; "
        "assert torchvision.ops.roi_align.__module__ and sys.modules['torch._dynamo.utils'].is_compile_supported('cpu')"
    )
    assert loaded(f"{LOAD}; {asked}") >= {COMPILER, "bitsandbytes", "torchvision"}


def test_the_compiler_is_told_what_was_marked_before_it_was_there():
    marked = (
        "from quantwatt.jobs import lean_imports; lean_imports.load('transformers.modeling_utils'); import torch; "
        "keep, allow = torch._dynamo.disable, torch._dynamo.allow_in_graph; f = keep(lambda x: x + 1); "
        "g = allow(lambda x: x * 2); assert lean_imports._marks; torch._dynamo.reset(); h = allow(lambda x: x * 3); "
        "allowed = torch._dynamo.trace_rules._allowed_callable_ids; assert id(g) in allowed and id(h) in allowed; "
        "assert f(torch.ones(1)).item() == 2 and keep(g)(torch.ones(1)).item() == 2"
    )
    assert COMPILER in loaded(marked)


def test_a_notebook_gets_the_libraries_whole():
    assert loaded(LOAD, in_a_job=False) >= {COMPILER, "bitsandbytes"}


@pytest.mark.parametrize(
    "script", ["score", "tables", "figure", "report", "study", "gather_images", "allocate", "quantize"]
)
def test_a_script_is_there_without_torch(script):
    modules = loaded(f"sys.path.insert(0, 'workflow_scripts'); import {script}")
    assert not {name.split(".")[0] for name in modules} & {"torch", "scipy", "transformers", "diffusers"}
