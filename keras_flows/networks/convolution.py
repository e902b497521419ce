"""Convolutions, by the products of matrices that compute them fastest."""

import numpy as np
import tensorflow as tf


def conv2d(x, kernel):
    """The convolution with zeros around x, for the empty batch of a replica, too."""
    size, _, channels, filters = kernel.shape
    if size == 1:
        rows = tf.matmul(tf.reshape(x, (-1, channels)), kernel[0, 0])
        return tf.reshape(rows, (-1, *x.shape[1:3], filters))
    y = _to_few(x, kernel) if filters < channels else _convolve(x, kernel)
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return y
    # oneDNN gives an empty batch the channels of x. The last size is always that of y; TensorFlow
    # must not know, or it takes the reshape out as one that changes nothing.
    *sizes, channels = y.shape[1:]
    whole = tf.reshape(y, [tf.shape(x)[0], *sizes, tf.minimum(channels, channels + tf.size(x))])
    whole.set_shape(y.shape)
    return whole


def _convolve(x, kernel):
    return tf.nn.conv2d(x, kernel, strides=1, padding="SAME")


@tf.custom_gradient
def _to_few(x, kernel):
    """A convolution to fewer channels than it is of.

    Both gradients are products with the windows of dy, made once. They are smaller than those of x,
    of which TensorFlow makes its kernel gradient.
    """
    size, _, channels, filters = kernel.shape

    def gradient(dy):
        windows = tf.reshape(_windows(dy, size), (-1, size**2 * filters))
        transposed = tf.reshape(tf.transpose(kernel, (0, 1, 3, 2)), (-1, channels))
        dx = tf.reshape(tf.matmul(windows, transposed), (-1, *x.shape[1:]))
        dkernel = tf.matmul(windows, tf.reshape(x, (-1, channels)), transpose_a=True)
        dkernel = tf.reshape(dkernel, (size, size, filters, channels))
        return dx, tf.transpose(dkernel, (0, 1, 3, 2))

    return _convolve(x, kernel), gradient


def _windows(dy, size):
    """Of each place the dy of all that it helps compute, (batch, height * width * size^2, filters).

    A place gives to its right what the kernel has to its left: so last comes first.
    """
    height, width, filters = dy.shape[1:]
    margin = [size // 2] * 2
    padded = tf.pad(dy, [[0, 0], margin, margin, [0, 0]])
    stride = width + size - 1
    places = tf.reshape(padded, (-1, (height + size - 1) * stride, filters))
    row, column, i, j = np.ogrid[:height, :width, :size, :size]
    last = size - 1
    return tf.gather(places, ((row + last - i) * stride + column + last - j).ravel(), axis=1)
