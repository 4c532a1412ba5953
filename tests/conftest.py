"""For all tests: each leaves the number of PyTorch's threads as it found it, and a file's are run by one worker."""

import pytest
import torch

LONG = ("workflow", "nvml")  # folders of tests that go first, so that no worker is left alone with a long file


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """The tests of a file, and those of several that share a run of the workflow, belong together."""
    groups = {}
    for item in items:
        if (mark := item.get_closest_marker("xdist_group")) is None:
            mark = pytest.mark.xdist_group(item.path.stem)
            item.add_marker(mark)
        place = LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG)
        groups.setdefault((place, mark.args[0]), []).append(item)
    items[:] = [item for _, own in sorted(groups.items(), key=lambda group: group[0][0]) for item in own]


@pytest.fixture(autouse=True)
def threads_as_found():
    """The last bits of a float product depend on it, and so do tests that compare two processes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
