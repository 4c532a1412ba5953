"""Failures that are results: a cell whose model does not fit, or whose images are broken."""

import contextlib

from quantwatt.images import DegenerateImages
from quantwatt.kernels import Unsupported
from quantwatt.text.predictions import DegeneratePredictions

OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory")  # torch's words, on a GPU and on a CPU


class ExpectedFailure(Exception):
    """status: "oom", "degenerate" or "unsupported"; the message is one sentence."""

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status, self.reason = status, reason


@contextlib.contextmanager
def expected():
    """Turn memory that does not suffice, degenerate outputs and a format that cannot be computed here into an
    ExpectedFailure; let bugs through."""
    try:
        yield
    except (DegenerateImages, DegeneratePredictions) as error:
        raise ExpectedFailure("degenerate", str(error)) from error
    except Unsupported as error:
        raise ExpectedFailure("unsupported", str(error)) from error
    except (MemoryError, RuntimeError) as error:
        # torch raises OutOfMemoryError for a GPU and a plain RuntimeError where the machine has no more.
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise ExpectedFailure("oom", str(error).splitlines()[0] if str(error) else "out of memory") from error
