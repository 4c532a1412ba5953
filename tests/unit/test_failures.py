"""Which errors end a cell as a result, and which are bugs."""

import pytest
import torch

from quantwatt.artifacts import failures


def test_a_compiler_that_is_missing_is_unsupported_in_its_own_words():
    class InductorError(torch._dynamo.exc.BackendCompilerFailed):
        def __init__(self):
            RuntimeError.__init__(self, "InvalidCxxCompiler: No C++ compiler\n\nSet TORCH_LOGS")

    with pytest.raises(failures.ExpectedFailure) as caught, failures.expected():
        raise InductorError
    assert (caught.value.status, caught.value.reason) == (
        "unsupported", "torch.compile: InvalidCxxCompiler: No C++ compiler",
    )  # fmt: skip


def test_another_error_is_a_bug():
    with pytest.raises(RuntimeError, match="shapes"), failures.expected():
        raise RuntimeError("shapes do not fit")
