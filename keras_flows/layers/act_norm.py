import math

import keras
import tensorflow as tf
from keras import ops

from keras_flows import adaptation, distribute
from keras_flows.bijection import constant_log_det
from keras_flows.layers.channel_affine import Affine, ChannelAffine

# The factor in exp(3 * log_scale) and the floor under the standard deviation, as released.
LOG_SCALE_FACTOR = 3.0
EPSILON = 1e-6


def adapt_bias_and_log_scale(bias, log_scale, x):
    """Sets both so that (x + bias) exp(3 log_scale) has mean 0 and deviation 1 by channel."""
    mean, variance = distribute.channel_moments(ops.cast(x, bias.dtype))
    bias.assign(-mean)
    log_scale.assign(-ops.log(ops.sqrt(variance) + EPSILON) / LOG_SCALE_FACTOR)


@keras.saving.register_keras_serializable(package="keras_flows")
class ActNorm(ChannelAffine):
    """An affine map of each channel that `adapt` makes zero-mean and of unit variance.

    z = (x + bias) exp(3 log_scale); log_det = cells * sum(3 log_scale), cells = height * width.

    Glow, section 3.1 and released code. It is the identity until it is adapted. Shapes:
    (batch, D) or (batch, height, width, channels), unchanged.
    """

    data_dependent = True

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.bias = self.add_weight(name="bias", shape=shape, initializer="zeros")
        self.log_scale = self.add_weight(name="log_scale", shape=shape, initializer="zeros")

    def affine(self, inverse):
        log_scale = LOG_SCALE_FACTOR * self.log_scale
        if inverse:
            scale, bias, log_scale = ops.exp(-log_scale), -self.bias, -log_scale
        else:
            scale = ops.exp(log_scale)
            bias = self.bias * scale
        return Affine(tf.linalg.diag(scale), bias, ops.sum(log_scale))

    # By itself it needs no matrix.

    def precompute(self, inverse):
        return ()

    def precomputed_weights(self):
        return []

    def forward_and_log_det(self, x, condition=None, training=False):
        if adaptation.is_adapting():
            adapt_bias_and_log_scale(self.bias, self.log_scale, x)
        log_scale = LOG_SCALE_FACTOR * self.log_scale
        return (x + self.bias) * ops.exp(log_scale), self._log_det(x, log_scale)

    def inverse_and_log_det(self, z, condition=None, training=False):
        log_scale = LOG_SCALE_FACTOR * self.log_scale
        return z * ops.exp(-log_scale) - self.bias, -self._log_det(z, log_scale)

    def _log_det(self, x, log_scale):
        return constant_log_det(math.prod(x.shape[1:-1]) * ops.sum(log_scale), x)
