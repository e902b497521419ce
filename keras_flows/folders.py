"""Folders and files that appear under their name complete, or not at all."""

import contextlib
import os
import tempfile

from keras_flows.arguments import require


@contextlib.contextmanager
def new_folder(path, argument):
    """Within this context a folder to write into, which becomes `path` at the end.

    If anything fails, nothing is left of it.

    Raises:
        FileExistsError: if `path`, the caller's `argument`, holds something.
        TypeError: if it is no path.
        ValueError: if it is a URL.
    """
    require(
        isinstance(path, str | os.PathLike),
        f"Argument `{argument}` must be a path",
        error=TypeError,
        **{argument: path},
    )
    require(
        "://" not in os.fspath(path),
        f"Argument `{argument}` must be a folder of this machine's file system; copy it from there",
        **{argument: path},
    )
    path = os.path.realpath(path)
    require(
        not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path)),
        f"Argument `{argument}` must be a new or empty folder: nothing is overwritten",
        error=FileExistsError,
        **{argument: path},
    )
    parent, name = os.path.split(path)
    try:
        os.makedirs(parent, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"Argument `{argument}` must be within folders, not files. "
            f"Received: {argument}={path!r} ({error})"
        ) from error
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as scratch:
        folder = os.path.join(scratch, name)
        os.mkdir(folder)
        yield folder
        os.replace(folder, path)


@contextlib.contextmanager
def replaced_file(path):
    """Within this context the path of a file to write, which replaces that at `path` at the end.

    If anything fails, the process is killed or the power too, the one before is still there.
    """
    parent, name = os.path.split(os.path.realpath(path))
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as scratch:
        file = os.path.join(scratch, name)
        yield file
        with open(file, "rb") as written:
            os.fsync(written.fileno())
        os.replace(file, os.path.join(parent, name))
