"""Data frames, pandas' or any like them: arrays whose columns have names."""

import numpy as np

from keras_flows.arguments import require

NUMBERS = "biuf"  # NumPy's kinds


def column_names(x):
    """The names of a data frame's columns; None for all else, and for columns that are numbered."""
    names = list(x.columns) if _is_frame(x) else []
    return names if names and all(isinstance(name, str) for name in names) else None


def to_array(x, dtype, expected=None, what="data"):
    """A data frame as an array of `dtype`, Booleans as 0 and 1; all else as `plain` has it.

    Raises:
        ValueError: if the columns have other names than `expected`, or are in another order.
        TypeError: for a column that holds no numbers.
    """
    if not _is_frame(x):
        return plain(x, what)
    names = column_names(x)
    require(
        None in (names, expected) or names == expected,
        f"{what.capitalize()} must have the columns {expected}, in this order, as the model "
        "learned them",
        columns=list(x.columns),
    )
    values = x.to_numpy()
    if values.dtype.kind not in NUMBERS:  # of different kinds, or of none that is a number
        columns = [np.asarray(x[name]) for name in x.columns]
        for name, column in zip(x.columns, columns, strict=True):
            if column.dtype.kind not in NUMBERS:
                raise TypeError(
                    f"Column {name!r} of the {what} must hold numbers. "
                    f"Received: dtype {x[name].dtype}"
                )
        values = np.stack(columns, axis=1)
    return values.astype(dtype)


def plain(x, what="data"):
    """A data frame or a column of one, whose dtype may be none of NumPy's, as an array.

    Raises:
        ValueError: for an array some of whose values are masked, which nothing here passes over.
        TypeError: for one of Python's objects.
    """
    if np.ma.is_masked(x):
        raise ValueError(
            f"{what.capitalize()} must have no masked values: leave out their rows, by "
            f"`np.ma.compress_rows(x)`, or fill them in. Received: {np.ma.count_masked(x)} of them"
        )
    if isinstance(x, np.ndarray) and x.dtype == object:
        raise TypeError(
            f"{what.capitalize()} must be an array of numbers: pass a data frame whole, that knows "
            'those of its columns, or `x.astype("float32")`. '
            f"Received: an array of objects, of shape {x.shape}"
        )
    return x.to_numpy() if hasattr(x, "to_numpy") else x


def _is_frame(x):
    # In this order: to tell its columns is work for polars' LazyFrame, which is none yet.
    return hasattr(x, "to_numpy") and hasattr(x, "columns")
