"""Pictures of samples as arrays and PNGs, which take no library of plots."""

import numpy as np
import tensorflow as tf


def of_samples(model, n=64, temperature=1.0, condition=None, seed=0, zoom=1, guidance=0.0):
    """A picture, uint8 (height, width, channels), of `n` samples: a grid of images, or points.

    Without a condition the classes of a class-conditional model take turns.
    """
    if condition is None and model.num_classes is not None:
        condition = np.arange(n) % model.num_classes
    samples = model.sample(n, temperature, condition, seed, guidance).numpy()
    return grid(samples, zoom) if model.is_image else scatter(samples)


def scatter(points, size=400):
    """An image of the first two coordinates of points (n, D), the darker the denser.

    Points that are not finite, as of a training that fails, are left out.
    """
    points = np.asarray(points, "float64")  # in which the range of float32 can be told
    points = points[np.isfinite(points).all(axis=1)]
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=size // 4)
    shades = 255 * (1 - np.minimum(counts, 4) / 4)
    return np.uint8(shades[::-1, :, None]).repeat(4, axis=0).repeat(4, axis=1)


def grid(images, zoom=1, line=1, columns=None):
    """One image of images (n, height, width, channels), near square, dark lines around them."""
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    blank = np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)
    cells = np.concatenate([images, blank]).repeat(zoom, axis=1).repeat(zoom, axis=2)
    cells = np.pad(cells, ((0, 0), (line, line), (line, line), (0, 0)), constant_values=64)
    rows = [
        np.concatenate(list(cells[i : i + columns]), axis=1) for i in range(0, len(cells), columns)
    ]
    return np.concatenate(rows)


def shown(image):
    """The image, or of other than 1, 3 or 4 channels the first, as there is no colour for it."""
    return image if image.shape[-1] in (1, 3, 4) else image[..., :1]


def png(image):
    """The bytes of a PNG; of other than 1, 3 or 4 channels, the first is shown."""
    return tf.io.encode_png(shown(image)).numpy()
