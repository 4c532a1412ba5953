"""What ends a cell as a result, and what is a bug."""

import pytest
import torch

from quantwatt.artifacts import errors


def test_a_compiler_that_is_missing_is_unsupported_in_its_own_words():
    class InductorError(torch._dynamo.exc.BackendCompilerFailed):
        def __init__(self):
            RuntimeError.__init__(self, "InvalidCxxCompiler: No C++ compiler\n\nSet TORCH_LOGS")

    with pytest.raises(errors.ExpectedFailure) as caught, errors.expected():
        raise InductorError
    assert (caught.value.status, caught.value.reason) == (
        "unsupported", "torch.compile: InvalidCxxCompiler: No C++ compiler",
    )  # fmt: skip


def test_another_error_is_a_bug():
    with pytest.raises(RuntimeError, match="shapes"), errors.expected():
        raise RuntimeError("shapes do not fit")
