import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.bijection import Bijection, constant_log_det
from keras_flows.precomputation import Precomputes


@keras.saving.register_keras_serializable(package="keras_flows")
class InvertibleConv1x1(Precomputes, Bijection):
    """A learned invertible mixing of the channels, a random rotation at the start.

    z = x W at each position, W = P L (U + diag(sign * exp(log_s)));
    log_det = cells * sum(log_s), cells = height * width.

    Glow, section 3.2, equations (10) and (11): P is a fixed permutation, L unit lower and U
    strictly upper triangular, the signs fixed, so that W cannot become singular. The released code
    learns W itself by default. Shapes: (batch, D), (batch, tokens, channels) or
    (batch, height, width, channels), unchanged.

    Example:

    ```python
    layer = keras_flows.layers.InvertibleConv1x1()
    x = np.ones((2, 8, 8, 12))
    z = layer(x)                                 # (2, 8, 8, 12)
    log_det = layer.forward_log_det_jacobian(x)  # (2,)
    ```
    """

    depends_on_direction = True

    def build(self, input_shape):
        channels = input_shape[-1]
        # One rotation for all five weights, drawn from Keras' global seed.
        draw = keras.initializers.Orthogonal()
        with tf.init_scope():
            rotation = np.asarray(ops.convert_to_numpy(draw((channels, channels))), "float64")
        for name, value in _factors(rotation).items():
            weight = self.add_weight(
                name=name,
                shape=value.shape,
                initializer=lambda shape, dtype, value=value: ops.convert_to_tensor(value, dtype),
                trainable=name not in ("sign", "permutation"),
            )
            setattr(self, name, weight)

    @property
    def constant_weights(self):
        return [self.sign, self.permutation]

    def precompute(self, inverse):
        """W, or its inverse, and log_det."""
        lower, upper = self._triangles()
        log_det = math.prod(self.event_shape[:-1]) * ops.sum(self.log_s)
        if not inverse:
            return ops.matmul(self.permutation, ops.matmul(lower, upper)), log_det
        matrix = tf.linalg.triangular_solve(lower, ops.transpose(self.permutation), lower=True)
        return tf.linalg.triangular_solve(upper, matrix, lower=False), -log_det

    def forward_and_log_det(self, x, condition=None, training=False):
        return _multiply(x, *self.precomputed(inverse=False))

    def inverse_and_log_det(self, z, condition=None, training=False):
        return _multiply(z, *self.precomputed(inverse=True))

    def assign_matrix(self, matrix):
        """Sets the weights to the factors of `matrix` (channels, channels), with z = x matrix."""
        for name, value in _factors(np.asarray(matrix, "float64")).items():
            getattr(self, name).assign(value)

    def _triangles(self):
        size = self.lower.shape[0]
        eye, below = (np.asarray(m, self.compute_dtype) for m in (np.eye(size), np.tri(size, k=-1)))
        diagonal = self.sign * ops.exp(self.log_s)
        return self.lower * below + eye, self.upper * below.T + diagonal * eye


def _multiply(x, matrix, log_det):
    y = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), matrix)
    return ops.reshape(y, (-1, *x.shape[1:])), constant_log_det(log_det, x)


def _factors(matrix):
    """The weights, by their names, with which W is `matrix`."""
    with tf.init_scope():
        packed, order = (part.numpy() for part in tf.linalg.lu(matrix))
    diagonal = np.diag(packed)
    return {
        "lower": np.tril(packed, -1),
        "upper": np.triu(packed, 1),
        "log_s": np.log(np.abs(diagonal)),
        "sign": np.sign(diagonal),
        "permutation": np.eye(len(packed))[:, order],
    }
