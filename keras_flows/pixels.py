"""The values of images: bytes, and what they seem to be where they are none."""

import warnings

import numpy as np
import tensorflow as tf

from keras_flows.batches import asserted

RULE = "Images must be uint8, or hold whole numbers in 0..255, not scaled to [0, 1]."


def check_bins(x, bits):
    """Refuses, or warns of, images whose values seem to be bins of so many bits already."""
    size, low, high = 2 ** (8 - bits), int(x.min()), int(x.max())
    if size == 1 or low == high:
        return
    message = (
        f"With bits={bits} the model sees floor(x / {size}) of bytes x in 0..255. Images that hold "
        f"{bits} bits already, values in 0..{2**bits - 1}, must be multiplied by {size}. "
        f"Received: values in {low}..{high}"
    )
    if low // size == high // size:
        raise ValueError(f"All of the images' values fall into one bin. {message}")
    if high < 2**bits:
        warnings.warn(message, stacklevel=4)


def check_pixels(x):
    """Refuses an array of other values than whole numbers in 0..255."""
    low, high = x.min(), x.max()
    if low >= 0 and high <= 255 and (x == np.floor(x)).all():
        return
    hint = ""
    if low >= 0 and high <= 1:
        hint = (
            ". Images scaled to [0, 1] have lost what a density over 8-bit images counts: pass "
            "the uint8 images as they were, or, if they were only divided by 255, "
            "`np.round(255 * x).astype('uint8')`"
        )
    elif low >= 0 and high <= 255:
        hint = (
            ". Resized images have fractions, as those of `image_dataset_from_directory("
            "image_size=...)`: round them, `dataset.map(lambda x: tf.cast(tf.round(x), tf.uint8))`"
        )
    elif low >= 0 and 255 < high < 2**16 and (x == np.floor(x)).all():
        hint = ". Of 16-bit images, pass the upper 8 bits, `(x // 256).astype('uint8')`"
    raise ValueError(
        "Images must be uint8, or hold whole numbers in 0..255. "
        f"Received: {x.dtype.name} values in [{low}, {high}]{hint}"
    )


def assert_pixels(x):
    """`check_pixels` in a graph: fails when the step runs, unless XLA compiled it."""
    if tf.executing_eagerly():
        return x
    return asserted(x, are_valid(x), RULE)


def are_valid(x):
    """Whether all of a tensor's values are whole numbers in 0..255."""
    return tf.reduce_all((x >= 0) & (x <= 255) & (x == tf.floor(x)))
