"""The networks' convolution is TensorFlow's."""

import numpy as np
import pytest
import tensorflow as tf

from keras_flows.networks.convolution import conv2d

RNG = np.random.default_rng(0)


def of_tensorflow(x, kernel):
    return tf.nn.conv2d(x, kernel, 1, "SAME")


@pytest.mark.parametrize(
    "kernel_shape", [(1, 1, 3, 4), (3, 3, 5, 2), (3, 3, 2, 5), (5, 5, 3, 1), (3, 3, 3, 3)], ids=str
)
def test_values_and_derivatives(kernel_shape):
    """Of the first and of the second order, in an image that is not square."""
    *_, channels, filters = kernel_shape
    x, kernel = RNG.normal(size=(2, 4, 6, channels)), RNG.normal(size=kernel_shape)
    weight = RNG.normal(size=(2, 4, 6, filters))
    directions = RNG.normal(size=x.shape), RNG.normal(size=kernel_shape)

    def all_of(convolve):
        @tf.function(autograph=False)  # of an unknown number of rows
        def compute(x, k):
            with tf.GradientTape() as outer:
                outer.watch([x, k])
                with tf.GradientTape() as tape:
                    tape.watch([x, k])
                    y = convolve(x, k)
                    loss = tf.reduce_sum(weight * y**2)
                first = tape.gradient(loss, [x, k])
                along = sum(tf.reduce_sum(g * d) for g, d in zip(first, directions, strict=True))
            return y, first, outer.gradient(along, [x, k])

        unknown = tf.TensorSpec((None, *x.shape[1:]), tf.float64)
        return compute.get_concrete_function(unknown, tf.constant(kernel))(x, kernel)

    expected, actual = all_of(of_tensorflow), all_of(conv2d)
    for desired, got in zip(tf.nest.flatten(expected), tf.nest.flatten(actual), strict=True):
        np.testing.assert_allclose(got, desired, rtol=1e-12, atol=1e-12)
