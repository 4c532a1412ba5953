"""For all tests: each leaves the number of PyTorch's threads as it found it, and a file's are run by one worker."""

import pytest
import torch

FIRST = ("workflow", "nvml")  # folders whose tests take longest: no worker shall be left alone with one of their files
# They look at one run of the workflow, which is the longest of all.
SMOKE = {f"tests/workflow/test_{name}.py" for name in ("end_to_end", "faults", "invalidation", "mistakes", "parts")}


def file_of(nodeid):
    return nodeid.split("::")[0]


def pytest_collection_modifyitems(items):
    def place(item):
        folder = item.path.parent.name
        return (FIRST.index(folder) if folder in FIRST else len(FIRST), file_of(item.nodeid) not in SMOKE)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A scheduler that gives all tests of a file, and all of SMOKE, to one worker, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRun(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "smoke" if file_of(nodeid) in SMOKE else file_of(nodeid)

    config.option.loadscopereorder = False
    return ByRun(config, log)


@pytest.fixture(autouse=True)
def threads_as_found():
    """The last bits of a float product depend on it, and so do tests that compare two processes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
