"""Failures that are results: out of memory, degenerate outputs, and formats that no kernel computes on this machine."""

import contextlib
from collections.abc import Generator, Mapping
from typing import Any

from quantwatt.artifacts.errors import DegenerateImages, DegeneratePredictions, Unsupported

OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory")  # parts of torch's messages, GPU and CPU

NO_COMPILER = "BackendCompilerFailed"  # class of torch, compared by name to avoid importing torch


class ExpectedFailure(Exception):
    """status: "oom", "degenerate" or "unsupported"; the message is one sentence."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def of_the_baseline(failure: ExpectedFailure, checkpoint: Mapping[str, Any]) -> str:
    """One sentence on why the unquantized model gives no baseline, and what to try.

    Args:
        failure: the ExpectedFailure.
        checkpoint: the manifest of the model's checkpoint.
    """
    dtype = checkpoint["model_settings"]["dtype"]
    remedy = "try dtype: float32" if dtype != "float32" else "check the model's files, and the sampling's entry"
    return f"not quantized, in {dtype}, {failure.reason.rstrip('.')}; {remedy}."


@contextlib.contextmanager
def expected() -> Generator[None, None, None]:
    """Convert failures that are results to ExpectedFailure; other exceptions are bugs and pass through.

    Results are too little memory, degenerate outputs, and formats that cannot be computed or compiled on this machine.
    """
    try:
        yield
    except (DegenerateImages, DegeneratePredictions) as error:
        raise ExpectedFailure("degenerate", str(error)) from error
    except Unsupported as error:
        raise ExpectedFailure("unsupported", str(error)) from error
    except (MemoryError, RuntimeError) as error:
        # torch raises OutOfMemoryError for a GPU and a plain RuntimeError for host memory.
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            if any(kind.__name__ == NO_COMPILER for kind in type(error).__mro__):
                reason = " ".join(str(error).split("\n\n")[0].split())
                raise ExpectedFailure("unsupported", f"torch.compile: {reason}") from error
            raise
        raise ExpectedFailure("oom", str(error).splitlines()[0] if str(error) else "out of memory") from error
