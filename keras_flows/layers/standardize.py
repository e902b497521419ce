import math

import keras
from keras import ops

from keras_flows import adaptation
from keras_flows.bijection import Bijection, constant_log_det


@keras.saving.register_keras_serializable(package="keras_flows")
class Standardize(Bijection):
    """Takes off the mean and the scale of data: z = (x - mean) / deviation, by channel.

    log_det = -cells * sum(log(deviation)), cells = height * width.

    `adapt` sets both, training does neither; until then it is the identity. A channel that does not
    vary where `adapt` looks keeps a deviation of 1. Shapes: (batch, D), (batch, tokens, channels)
    or (batch, height, width, channels), unchanged.

    Example:

    ```python
    layer = keras_flows.layers.Standardize()
    layer.adapt(np.random.normal(50.0, 7.0, size=(1000, 2)))
    layer.deviation.shape                        # (2,)
    ```
    """

    data_dependent = True

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros", trainable=False)
        self.deviation = self.add_weight(
            name="deviation", shape=shape, initializer="ones", trainable=False
        )

    @property
    def constant_weights(self):
        return [self.mean, self.deviation]

    def forward_and_log_det(self, x, condition=None, training=False):
        if adaptation.is_adapting():
            mean, deviation = adaptation.mean_and_deviation(x)
            self.mean.assign(mean)
            self.deviation.assign(deviation)
        return (x - self.mean) / self.deviation, constant_log_det(-self._log_scale(), x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        return z * self.deviation + self.mean, constant_log_det(self._log_scale(), z)

    def _log_scale(self):
        return math.prod(self.event_shape[:-1]) * ops.sum(ops.log(self.deviation))
