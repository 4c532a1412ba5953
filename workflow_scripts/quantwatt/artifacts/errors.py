"""Exceptions of stages whose message is a sentence for the user; `failures` decides which of them are results."""


class DataError(Exception):
    """An input file is missing, truncated or corrupted; the message is one sentence for the user."""


class DegenerateImages(DataError):
    """Images that must not be scored: NaN, or a single colour. The message is one sentence for the user."""


class DegeneratePredictions(DataError):
    """Predictions that must not be scored: NaN or infinity. The message is one sentence for the user."""


class Unsupported(DataError):
    """This device or installation cannot compute a checkpoint's formats; the message says why."""
