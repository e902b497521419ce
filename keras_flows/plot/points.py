"""Densities of the plane, and points of more dimensions two by two."""

import numpy as np

from keras_flows import data_frames
from keras_flows.arguments import check_in, check_integers, require
from keras_flows.plot import axes

_ALONG = 400  # points along a line of the grid


def density(model, points=None, *, condition=None, bounds=None, resolution=200, ax=None):
    """Draws the density of a model of two numbers, the darker the denser, and points over it.

    ```python
    ax = keras_flows.plot.density(plane, plane.sample(500, seed=0), resolution=50)
    ```

    Args:
        model: a Flow of vectors (2,).
        points: (n, 2), data or samples; None for none.
        condition: of a conditional model, a single one.
        bounds: ((left, right), (bottom, top)) of the picture; by default around the points, or
            around samples of the model.
        resolution: how many places along each side the density is computed at.
        ax: Axes of matplotlib to draw into; None for those of a new figure.

    Returns:
        The Axes.
    """
    _check_plane(model)
    check_integers(2, resolution=resolution)
    if points is not None:
        points = _as_points(points, 2)
    if bounds is None:
        around = model.sample(1000, condition=condition, seed=0) if points is None else points
        bounds = _around(np.asarray(around), model.bounds)
    bounds = np.asarray(bounds, "float64")
    require(
        bounds.shape == (2, 2) and np.all(bounds[:, 0] < bounds[:, 1]),
        "Argument `bounds` must be ((left, right), (bottom, top))",
        bounds=bounds.tolist(),
    )
    # The middles of cells: what lies on the bound itself may have no density.
    x, y = (low + (high - low) * (np.arange(resolution) + 0.5) / resolution for low, high in bounds)
    places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    counted = model.integer_columns or []
    places[:, counted] = np.floor(places[:, counted])  # of u in [0, 1)
    log_prob = np.asarray(model.log_prob(places, _repeated(model, len(places), condition)))
    ax = axes.one(ax, figsize=(4.8, 4.8 * _aspect(bounds)))
    ax.pcolormesh(x, y, np.exp(log_prob).reshape(resolution, resolution), cmap="Blues")
    if points is not None:
        ax.scatter(*points.T, s=6, c="tab:orange", alpha=0.8, linewidths=0)
    ax.set(xlim=bounds[0], ylim=bounds[1])
    _label(ax, model)
    return ax


def latent_grid(model, *, condition=None, extent=2.5, lines=11, ax=None):
    """Draws a square grid of latents as the model bends it into the space of data.

    ```python
    ax = keras_flows.plot.latent_grid(plane, ax=keras_flows.plot.density(plane, resolution=50))
    ```

    Args:
        model: a Flow of vectors (2,).
        condition: of a conditional model, a single one.
        extent: the grid's latents are in [-extent, extent]^2.
        lines: how many each way.
        ax: Axes of matplotlib to draw into, for instance those of `density`; None for those of a
            new figure.

    Returns:
        The Axes.
    """
    _check_plane(model)
    check_integers(2, lines=lines)
    check_in("(0, inf)", extent=extent)
    fixed, along = np.linspace(-extent, extent, lines), np.linspace(-extent, extent, _ALONG)
    vertical = np.stack(np.meshgrid(fixed, along, indexing="ij"), axis=-1)  # (lines, _ALONG, 2)
    latents = np.concatenate([vertical, vertical[..., ::-1]]).reshape(-1, 2)
    data = np.asarray(model.decode(latents, _repeated(model, len(latents), condition)))
    ax = axes.one(ax, figsize=(4.8, 4.8))
    for i, line in enumerate(data.reshape(2 * lines, _ALONG, 2)):
        ax.plot(*line.T, color="tab:red" if i < lines else "tab:green", linewidth=0.7, alpha=0.8)
    _label(ax, model)
    return ax


def pairs(data, names=None, *, limit=2000, axes=None):
    """Draws points of some dimensions two by two, and how each is distributed on the diagonal.

    ```python
    points = plane.sample(200, seed=0)
    axes = keras_flows.plot.pairs({"data": points[:100], "samples": points[100:]})
    ```

    Args:
        data: (n, D), or a dict of such sets by name, data and samples for instance. Rows that are
            not finite are left out.
        names: of the D columns.
        limit: how many points of each set are drawn, the first.
        axes: D x D Axes of matplotlib to draw into; None for those of a new figure.

    Returns:
        The Axes, an array (D, D), of which those above the diagonal are empty.
    """
    sets = data if isinstance(data, dict) else {None: data}
    require(sets, "Argument `data` must be (n, D), or a dict of such", data=data)
    size = np.shape(next(iter(sets.values())))[-1]
    sets = {name: _as_points(points, size) for name, points in sets.items()}
    sets = {name: points[np.isfinite(points).all(axis=1)] for name, points in sets.items()}
    names = [f"$x_{{{i + 1}}}$" for i in range(size)] if names is None else list(names)
    require(
        len(names) == size,
        f"Argument `names` must have one for each of {size} columns",
        names=names,
    )
    check_integers(1, limit=limit)
    every = np.concatenate(list(sets.values()))
    require(len(every), "Argument `data` must have rows that are finite", names=list(sets))
    return _draw_pairs(sets, names, every.min(axis=0), every.max(axis=0), limit, axes)


def _draw_pairs(sets, names, low, high, limit, given):
    size = len(names)
    grid = axes.several(given, size, size, figsize=(1.8 * size + 0.4, 1.8 * size + 0.2))
    margin = 0.03 * (high - low)
    for row in range(size):
        for column in range(size):
            ax = grid[row, column]
            if column > row:
                ax.set_axis_off()
                continue
            for name, points in sets.items():
                x, y = points[:, column], points[:, row]
                if row == column:
                    bins = np.linspace(low[row], high[row], 41)
                    ax.hist(x, bins, density=True, alpha=0.5, label=name)
                else:
                    ax.scatter(x[:limit], y[:limit], s=2, alpha=0.4, linewidths=0)
            ax.set_xlim(low[column] - margin[column], high[column] + margin[column])
            if row == column:
                ax.set_yticks([])
            else:
                ax.set_ylim(low[row] - margin[row], high[row] + margin[row])
            ax.tick_params(labelbottom=row == size - 1, labelleft=column == 0 and row > 0)
            if row == size - 1:
                ax.set_xlabel(names[column])
            if column == 0 and row > 0:
                ax.set_ylabel(names[row])
    if list(sets) != [None]:
        # Of the first picture, where it covers no points.
        corner = grid[0, -1] if size > 1 else grid[0, 0]
        corner.legend(*grid[0, 0].get_legend_handles_labels(), loc="upper right")
    return grid


def _check_plane(model):
    require(
        model.input_shape == (2,),
        "Argument `model` must be of vectors of two numbers",
        input_shape=model.input_shape,
    )


def _as_points(points, size):
    points = np.asarray(data_frames.to_array(points, "float64"))
    require(
        points.ndim == 2 and points.shape[1] == size and len(points),
        f"Points must have shape (n, {size}), n at least 1",
        shape=points.shape,
    )
    return points.astype("float64")


def _around(points, bounds):
    """((left, right), (bottom, top)) a tenth beyond finite points, but within a model's bounds."""
    points = points[np.isfinite(points).all(axis=1)]
    require(len(points), "Points, or the model's samples, must be finite", finite=0)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.where(high > low, 0.1 * (high - low), 1.0)
    sides = []
    for i, (left, right) in enumerate(zip(low - margin, high + margin, strict=True)):
        least, most = (bounds and bounds[i]) or (-np.inf, np.inf)
        sides.append((max(left, least), min(right, most)))
    return sides


def _aspect(bounds):
    width, height = bounds[:, 1] - bounds[:, 0]
    return float(np.clip(height / width, 0.5, 1.5))


def _repeated(model, count, condition):
    """A single condition for `count` rows; None of an unconditional model."""
    condition = model.data_spec.condition.for_samples(1, condition)
    return condition if condition is None else np.repeat(condition, count, axis=0)


def _label(ax, model):
    names = model.data_spec.columns or ("$x_1$", "$x_2$")
    ax.set(xlabel=names[0], ylabel=names[1])
