"""For all tests: each leaves the number of PyTorch's threads as it found it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def threads_as_found():
    """The last bits of a float product depend on it, and so do tests that compare two processes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
