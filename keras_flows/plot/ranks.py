"""A picture of simulation-based calibration."""

import numpy as np

from keras_flows.arguments import check_integers, require
from keras_flows.plot import axes


def calibration(below, less_probable, count, *, names=None, axes=None):
    """Draws ranks of the truth among samples, and what credible regions cover.

    Of an exact density the curves follow the diagonal, 95 % of the time at each place within the
    grey. Ranks above it are of a posterior that lies too high, S-shapes of one too narrow or too
    wide; coverage below it is of one too sure of itself.

    ```python
    below, less_probable = keras_flows.calibration.ranks(posterior, theta, x, count=9)
    axes = keras_flows.plot.calibration(below, less_probable, count=9)
    ```

    Args:
        below: (n, D), how many samples are below the truth in each dimension; as of
            `calibration.ranks`.
        less_probable: (n,), how many are less probable.
        count: of how many samples.
        names: of the D dimensions.
        axes: two Axes of matplotlib to draw into; None for those of a new figure.

    Returns:
        The Axes, an array (2,): ranks, coverage.
    """
    check_integers(1, count=count)
    below, less_probable = np.asarray(below), np.asarray(less_probable)
    require(
        below.ndim == 2 and len(below) and less_probable.shape == below.shape[:1],
        "Arguments `below` and `less_probable` must have shapes (n, D) and (n,), n at least 1",
        below=below.shape,
        less_probable=less_probable.shape,
    )
    n, size = below.shape
    names = [rf"$\theta_{{{i + 1}}}$" for i in range(size)] if names is None else list(names)
    require(len(names) == size, f"Argument `names` must have {size}", names=names)
    return _draw(
        (below + 0.5) / (count + 1), 1 - (less_probable[:, None] + 0.5) / (count + 1), names, axes
    )


def _draw(quantiles, levels, names, given):
    nominal = np.linspace(0, 1, 101)
    spread = 1.96 * np.sqrt(nominal * (1 - nominal) / len(quantiles))
    left, right = both = axes.several(given, 1, 2, figsize=(8, 4.2))[0]
    for ax, values in zip(both, (quantiles, levels), strict=True):
        ax.fill_between(nominal, nominal - spread, nominal + spread, color="0.88", linewidth=0)
        for column in values.T:
            ax.plot(nominal, np.mean(column[:, None] <= nominal, axis=0), linewidth=1.5)
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    left.legend(left.lines, names, loc="upper left")
    left.set(title="Ranks of the true parameters", xlabel="rank", ylabel="share below")
    right.set(title="Credible regions", xlabel="credibility", ylabel="share that holds the truth")
    return both
