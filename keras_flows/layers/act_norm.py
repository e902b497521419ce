import math

import keras
import tensorflow as tf
from keras import ops

from keras_flows import adaptation
from keras_flows.adaptation import LOG_SCALE_FACTOR
from keras_flows.bijection import Bijection, constant_log_det
from keras_flows.precomputation import Precomputes


@keras.saving.register_keras_serializable(package="keras_flows")
class ActNorm(Precomputes, Bijection):
    """An affine map of each channel that `adapt` makes zero-mean and of unit variance.

    z = (x + bias) exp(3 log_scale); log_det = cells * sum(3 log_scale), cells = height * width.

    Glow, section 3.1 and released code. It is the identity until it is adapted. Shapes:
    (batch, D), (batch, tokens, channels) or (batch, height, width, channels), unchanged.

    Example:

    ```python
    x = np.random.normal(3.0, 2.0, size=(64, 6))
    layer = keras_flows.layers.ActNorm()
    layer.adapt(x)
    z = layer(x)                                 # of mean 0 and deviation 1, channel by channel
    ```
    """

    data_dependent = True
    depends_on_direction = True

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.bias = self.add_weight(name="bias", shape=shape, initializer="zeros")
        self.log_scale = self.add_weight(name="log_scale", shape=shape, initializer="zeros")

    def precompute(self, inverse):
        """scale and offset of y = x * scale + offset, and log_det."""
        log_scale = LOG_SCALE_FACTOR * self.log_scale
        log_det = math.prod(self.event_shape[:-1]) * ops.sum(log_scale)
        if inverse:
            return ops.exp(-log_scale), -self.bias, -log_det
        scale = ops.exp(log_scale)
        return scale, self.bias * scale, log_det

    def forward_and_log_det(self, x, condition=None, training=False):
        if adaptation.is_adapting():
            adaptation.normalize_channels(self.bias, self.log_scale, x)
        return _affine(x, *self.precomputed(inverse=False))

    def inverse_and_log_det(self, z, condition=None, training=False):
        return _affine(z, *self.precomputed(inverse=True))


def _affine(x, scale, offset, log_det):
    # Of `bias_add` TensorFlow knows the gradient's shape; of a sum it would compute it.
    return tf.nn.bias_add(x * scale, offset), constant_log_det(log_det, x)
