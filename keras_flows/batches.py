"""Batches of whatever they hold: as tensors, of known shape, of no rows, and of rows to be lost."""

import numpy as np
import tensorflow as tf


def as_tensor(x):
    """x as a tensor; of lists of numbers, as NumPy does, without a loss of digits."""
    of_tensors = hasattr(x, "dtype") or any(map(tf.is_tensor, tf.nest.flatten(x)))
    return tf.convert_to_tensor(x if of_tensors else np.asarray(x))


def tensor_if_one(x):
    """`as_tensor`; what cannot be one is left to whoever refuses it in words."""
    try:
        return as_tensor(x)
    except (TypeError, ValueError):
        return x


def with_shape(x, shape):
    """x with the static shape (batch, *shape), where it is not known yet, as of a decoded file."""
    known = tf.TensorShape(x.shape)
    if known.rank is not None and known[1:].is_fully_defined():
        return x
    return tf.ensure_shape(x, (None, *shape))


def asserted(x, valid, rule):
    """x in a graph, with an error of the rule and x if it is not valid, unless XLA compiled it."""
    with tf.control_dependencies([tf.debugging.Assert(valid, [rule, "Received:", x])]):
        return tf.identity(x)


def of_any_rows(function, *batches):
    """`function(*batches)`; of no rows by way of one, as oneDNN convolves no fewer."""
    if batches[0].shape[0] != 0:
        return function(*batches)
    batches = [
        None if each is None else tf.pad(each, [[0, 1], *[[0, 0]] * (each.shape.rank - 1)])
        for each in batches
    ]
    return tf.nest.map_structure(lambda result: result[:0], function(*batches))


def spoil_rows(rows, x):
    """x with NaN throughout the `rows`, (batch,) of booleans; with zeros, if they are integers."""
    return _fill_rows(rows, x, float("nan") if x.dtype.is_floating else 0)


def clear_rows(rows, x):
    """x with zeros throughout the `rows`, (batch,) of booleans."""
    return _fill_rows(rows, x, 0)


def _fill_rows(rows, x, value):
    rows = tf.reshape(rows, [-1, *[1] * (x.shape.rank - 1)])
    return tf.where(rows, tf.constant(value, x.dtype), x)
