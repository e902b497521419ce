"""Folders that appear under their name complete, or not at all."""

import contextlib
import os
import tempfile


@contextlib.contextmanager
def new_folder(path, argument):
    """Within this context a folder to write into, which becomes `path` at the end.

    If anything fails, nothing is left of it.

    Raises:
        FileExistsError: if `path`, the caller's `argument`, holds something.
        TypeError: if it is no path.
        ValueError: if it is a URL.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"Argument `{argument}` must be a path. Received: {argument}={path!r}")
    if "://" in os.fspath(path):
        raise ValueError(
            f"Argument `{argument}` must be a folder of this machine's file system; copy it from "
            f"there. Received: {argument}={path!r}"
        )
    path = os.path.realpath(path)
    if os.path.lexists(path) and (not os.path.isdir(path) or os.listdir(path)):
        raise FileExistsError(
            f"Argument `{argument}` must be a new or empty folder: nothing is overwritten. "
            f"Received: {argument}={path!r}"
        )
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as scratch:
        folder = os.path.join(scratch, name)
        os.mkdir(folder)
        yield folder
        os.replace(folder, path)
