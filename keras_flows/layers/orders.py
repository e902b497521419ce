"""Permutations as weights: what a layer draws, or is given, once, and keeps."""

import tensorflow as tf
from keras import ops


def add_order(layer, name, order):
    """A constant weight of `layer`, the integers `order`, for `permute`."""
    return layer.add_weight(
        name=name,
        shape=order.shape,
        dtype="int64",  # XLA finds none of int32 on a GPU
        initializer=lambda shape, dtype: ops.convert_to_tensor(order.copy(), dtype),
        trainable=False,
    )


def permute(x, order, back):
    """x (batch, n, ...) in the order given, which `back` undoes."""
    # Tensors, as in a `Repeat` the weights have their values for the time of a step alone.
    return _gather(x, tf.convert_to_tensor(order), tf.convert_to_tensor(back))


@tf.custom_gradient
def _gather(x, order, back):
    """TensorFlow's own gradient sums, as if an element could be there twice."""
    return _take(x, order), lambda dz: (_take(dz, back), None, None)


def _take(x, order):
    """Along axis 1; single elements by way of rows of the transpose, which are copied whole."""
    if len(x.shape) > 2:
        return tf.gather(x, order, axis=1)
    return tf.transpose(tf.gather(tf.transpose(x), order))
