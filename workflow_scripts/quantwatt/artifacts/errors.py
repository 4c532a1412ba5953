"""What a stage may raise with a sentence for the user; `failures` tells which of it is a result."""


class DataError(Exception):
    """An input file is missing, truncated or corrupted; the message is one sentence for the user."""


class DegenerateImages(DataError):
    """Images that no metric may score: NaN, or a single colour. The message is one sentence for the user."""


class DegeneratePredictions(DataError):
    """Predictions that no metric may score: NaN or infinity. The message is one sentence for the user."""


class Unsupported(DataError):
    """This device or installation cannot compute what a checkpoint holds; the message says why."""
