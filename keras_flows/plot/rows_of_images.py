"""Rows and grids of images."""

import numpy as np

from keras_flows import latent, pictures
from keras_flows.arguments import check_integers, require
from keras_flows.plot import axes


def images(images, *, columns=None, ax=None):
    """Draws images in a grid, near square or of so many columns.

    ```python
    ax = keras_flows.plot.images(model.sample(16, temperature=0.7, seed=0))
    ```

    Args:
        images: uint8 (n, height, width, channels); of other than 1, 3 or 4 channels, the first.
        columns: how many stand side by side.
        ax: Axes of matplotlib to draw into; None for those of a new figure.

    Returns:
        The Axes.
    """
    images = np.asarray(images)
    require(
        images.ndim == 4 and len(images) and images.dtype == np.uint8,
        "Argument `images` must be uint8 of shape (n, height, width, channels), n at least 1",
        dtype=images.dtype.name,
        shape=images.shape,
    )
    if columns is not None:
        check_integers(1, columns=columns)
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    scale = min(0.8, 6 / max(rows, columns))  # inches an image
    ax = axes.one(ax, figsize=(scale * columns, scale * rows))
    # Lines of one pixel, whatever the image's size: small ones are enlarged first.
    zoom = max(1, 56 // images.shape[1])
    picture = pictures.shown(pictures.grid(images, zoom, columns=columns))
    ax.imshow(
        picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255
    )
    ax.set_axis_off()
    return ax


def interpolation(model, a, b, n=8, how="linear", *, condition=None, ax=None):
    """Draws the images between two by their latents, a row for each pair.

    ```python
    ax = keras_flows.plot.interpolation(model, images[:2], images[2:4], n=5)
    ```

    Args:
        model: a Flow of images.
        a, b: one image each, or as many in batches, as `model.encode` takes them.
        n: images in a row, at least 2; the first and the last are `a` and `b`.
        how: "linear" or "spherical", as in `latent.interpolate`.
        condition: of a conditional model, one for all, or one for each pair.
        ax: Axes of matplotlib to draw into; None for those of a new figure.

    Returns:
        The Axes.
    """
    _check_images(model)
    ends = [np.asarray(each) for each in (a, b)]
    ends = [each if each.ndim == 4 else each[None] for each in ends]
    require(
        ends[0].shape == ends[1].shape,
        "Arguments `a` and `b` must have one shape",
        a=ends[0].shape,
        b=ends[1].shape,
    )
    pairs = len(ends[0])
    condition = _for_rows(model, pairs, condition)
    latents = [np.asarray(model.encode(each, condition)) for each in ends]
    between = latent.interpolate(*latents, n, how)  # (n, pairs, D)
    condition = condition if condition is None else np.repeat(condition, n, axis=0)
    strips = model.decode(between.swapaxes(0, 1).reshape(pairs * n, -1), condition)
    return images(strips, columns=n, ax=ax)


def temperatures(
    model, temperatures=(0.0, 0.25, 0.5, 0.7, 0.85, 1.0), n=8, *, condition=None, seed=0, ax=None
):
    """Draws samples of the same latents at several temperatures, a row for each.

    ```python
    ax = keras_flows.plot.temperatures(model, (0.5, 1.0), n=4)
    ```

    Args:
        model: a Flow of images.
        temperatures: factors on the latents, at least 0, from the top row down.
        n: images in a row.
        condition: as `model.sample` takes it: one for all, or for each of a row.
        seed: an integer in 0 .. 2^31 - 1.
        ax: Axes of matplotlib to draw into; None for those of a new figure.

    Returns:
        The Axes.
    """
    _check_images(model)
    temperatures = list(temperatures)
    require(temperatures, "Argument `temperatures` must have one at least", temperatures=[])
    rows = [np.asarray(model.sample(n, each, condition, seed)) for each in temperatures]
    ax = images(np.concatenate(rows), columns=n, ax=ax)
    _, height = ax.get_ylim()[::-1]
    cell = (height + 0.5) / len(rows)
    ax.set_axis_on()
    ax.set_xticks([])
    ax.set_yticks([cell * (i + 0.5) - 0.5 for i in range(len(rows))], map(str, temperatures))
    ax.tick_params(length=0)
    ax.set_frame_on(False)
    ax.set_ylabel("temperature")
    return ax


def _check_images(model):
    require(model.is_image, "Argument `model` must be of images", input_shape=model.input_shape)


def _for_rows(model, count, condition):
    """`count` conditions, of as many or of one; None of an unconditional model."""
    condition = model.data_spec.condition.for_samples(count, condition)
    if condition is None:
        return None
    return np.broadcast_to(condition, (count, *condition.shape[1:]))
