"""Convolutions, by the products of matrices that compute them fastest."""

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

    TensorFlow's kernel gradient multiplies all windows of x with dy. That is a product of x with
    the windows of dy, too, which are smaller here.
    """

    def gradient(dy):
        dx = tf.nn.conv2d_transpose(dy, kernel, tf.shape(x), strides=1, padding="SAME")
        return dx, _kernel_gradient(x, dy, kernel.shape)

    return _convolve(x, kernel), gradient


def _kernel_gradient(x, dy, shape):
    """x times the windows of dy, as what y has from a place to its left, x gives to its right."""
    size, _, channels, filters = shape
    height, width = x.shape[1:3]
    margin = [size // 2] * 2
    padded = tf.pad(dy, [[0, 0], margin, margin, [0, 0]])
    shifts = [(size - 1 - i, size - 1 - j) for i in range(size) for j in range(size)]
    windows = tf.concat([padded[:, i : i + height, j : j + width] for i, j in shifts], axis=-1)
    rows, windows = tf.reshape(x, (-1, channels)), tf.reshape(windows, (-1, size**2 * filters))
    gradient = tf.reshape(
        tf.matmul(rows, windows, transpose_a=True), (channels, size, size, filters)
    )
    return tf.transpose(gradient, (1, 2, 0, 3))
