"""What a function draws into: the caller's Axes, or those of a new figure."""

import numpy as np

from keras_flows.arguments import require


def one(ax, **figure):
    """`ax`, or the Axes of a new figure."""
    if ax is None:
        _, ax = _pyplot().subplots(layout="constrained", **figure)
    _check(ax=ax)
    return ax


def several(axes, rows, columns, **figure):
    """`axes` as an array (rows, columns), or those of a new figure."""
    if axes is None:
        _, axes = _pyplot().subplots(rows, columns, squeeze=False, layout="constrained", **figure)
    axes = np.asarray(axes, dtype=object)
    require(
        axes.size == rows * columns,
        f"Argument `axes` must hold {rows} x {columns} Axes of matplotlib",
        axes=axes,
    )
    for ax in axes.flat:
        _check(axes=ax)
    return axes.reshape(rows, columns)


def _check(**argument):
    ((name, ax),) = argument.items()
    require(
        hasattr(ax, "set_xlabel"),
        f"Argument `{name}` must be Axes of matplotlib, or None for a new figure",
        error=TypeError,
        **argument,
    )


def _pyplot():
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "keras_flows.plot draws with matplotlib, which is not installed: "
            "pip install 'keras_flows[plot]', or matplotlib alone."
        ) from error
    return pyplot
