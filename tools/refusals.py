"""How a tool ends where it cannot use what it was given: by the words, without a traceback."""

import contextlib
import pathlib
import sys


@contextlib.contextmanager
def telling(what=None):
    """Within this context errors of a wrong value, type or file end the program, telling `what`."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        prefix = "" if what is None else f"{what}: "
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: error: {prefix}{error}")
