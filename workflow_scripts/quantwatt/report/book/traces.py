"""Power traces small enough to be passed on: the mean and the range of equal spans of one process."""

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd

from quantwatt.artifacts.errors import DataError

SPANS = 240  # of a trace: more than a page's column has pixels for
COLUMNS = ("t_s", "watts", "watts_low", "watts_high", "samples")


def downsample(path: str | Path) -> bytes | None:
    """A cell's power.csv as CSV with COLUMNS: of its first process at most SPANS equal spans of time.

    t_s is the middle of a span in seconds since the first sample; a span without samples is left out.

    Returns:
        None where no power was sampled.
    Raises:
        DataError: the file is not a table with the columns t_s, watts and process.
    """
    try:
        samples = pd.read_csv(path, usecols=["t_s", "watts", "process"])
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: not a table with t_s, watts and process ({error}).") from error
    samples = samples[samples["process"] == 0].dropna().sort_values("t_s", kind="stable")
    if samples.empty:
        return None
    seconds = samples["t_s"].to_numpy(float) - samples["t_s"].iloc[0]
    width = max(seconds[-1] / SPANS, math.ulp(1.0))
    span = np.minimum((seconds / width).astype(int), SPANS - 1)
    kept = samples["watts"].groupby(span).agg(["mean", "min", "max", "size"])
    kept.insert(0, "t_s", (kept.index.to_numpy() + 0.5) * width)
    text = io.StringIO()
    kept.set_axis(list(COLUMNS), axis=1).to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
    return text.getvalue().encode()
