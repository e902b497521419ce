"""Shapes that are not known when a graph is traced, as those of decoded files."""

import tensorflow as tf


def of_shape(x, shape):
    """x with the static shape (batch, *shape), where it is not known yet."""
    known = tf.TensorShape(x.shape)
    if known.rank is not None and known[1:].is_fully_defined():
        return x
    return tf.ensure_shape(x, (None, *shape))
