import math

import keras
from keras import ops

from keras_flows import adaptation
from keras_flows.adaptation import LOG_SCALE_FACTOR
from keras_flows.bijection import Bijection, constant_log_det


@keras.saving.register_keras_serializable(package="keras_flows")
class ActNorm(Bijection):
    """An affine map of each channel that `adapt` makes zero-mean and of unit variance.

    z = (x + bias) exp(3 log_scale); log_det = cells * sum(3 log_scale), cells = height * width.

    Glow, section 3.1 and released code. It is the identity until it is adapted. Shapes:
    (batch, D), (batch, tokens, channels) or (batch, height, width, channels), unchanged.
    """

    data_dependent = True

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.bias = self.add_weight(name="bias", shape=shape, initializer="zeros")
        self.log_scale = self.add_weight(name="log_scale", shape=shape, initializer="zeros")

    def forward_and_log_det(self, x, condition=None, training=False):
        if adaptation.is_adapting():
            adaptation.normalize_channels(self.bias, self.log_scale, x)
        log_scale = LOG_SCALE_FACTOR * self.log_scale
        return (x + self.bias) * ops.exp(log_scale), self._log_det(x, log_scale)

    def inverse_and_log_det(self, z, condition=None, training=False):
        log_scale = LOG_SCALE_FACTOR * self.log_scale
        return z * ops.exp(-log_scale) - self.bias, -self._log_det(z, log_scale)

    def _log_det(self, x, log_scale):
        return constant_log_det(math.prod(x.shape[1:-1]) * ops.sum(log_scale), x)
