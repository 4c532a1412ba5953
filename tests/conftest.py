"""For all tests: each leaves PyTorch's threads and gradients as it found them, and a file's are run by one worker."""

import pytest
import torch

FIRST = ("workflow", "nvml")  # folders whose tests take longest: no worker shall be left alone with one of their files
# They look at one run of the workflow, which is the longest of all.
SMOKE = {f"tests/workflow/test_{name}.py" for name in ("end_to_end", "decisions", "faults", "invalidation", "mistakes",
                                                       "parts")}  # fmt: skip
# They run programs in forks of one server of preloaded.py.
FORKING = {f"tests/unit/test_{name}.py" for name in ("checkpoint", "cpu_kernels", "exports", "gpu_evidence",
                                                     "library_formats", "security")}  # fmt: skip


def file_of(nodeid):
    return nodeid.split("::")[0]


def pytest_collection_modifyitems(items):
    def place(item):
        folder = item.path.parent.name
        return (FIRST.index(folder) if folder in FIRST else len(FIRST), file_of(item.nodeid) not in SMOKE)

    def looks(item):  # at the run of the session, and at none of its file's own
        found = item._fixtureinfo.name2fixturedefs.get("finished")
        return found and found[-1].scope == "session"

    if strays := {file_of(item.nodeid) for item in items if looks(item)} - SMOKE:
        raise pytest.UsageError(f"{', '.join(sorted(strays))}: looks at the one run of the workflow; add it to SMOKE.")
    items.sort(key=place)
    if not torch.cuda.is_available():
        without = pytest.mark.skip(reason="there is no GPU")
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(without)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A scheduler that gives all tests of a file, all of SMOKE, and all of FORKING to one worker, in their order."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRun(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = file_of(nodeid)
            return "smoke" if file in SMOKE else "forking" if file in FORKING else file

    config.option.loadscopereorder = False
    return ByRun(config, log)


@pytest.fixture(autouse=True)
def torch_as_found():
    """The last bits of a float product depend on threads, and so do tests that compare two processes."""
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(gradients)
