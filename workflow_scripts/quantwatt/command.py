"""Run a script's main function the way every rule expects it to end."""

import sys

from quantwatt.manifest import DataError


def run(main):
    """Call `main()`; print a DataError as one sentence and exit 1. Other exceptions are bugs and keep their traceback."""
    try:
        sys.exit(main())
    except DataError as error:
        sys.exit(f"error: {error}")
