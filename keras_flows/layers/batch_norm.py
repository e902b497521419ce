import math

import keras
from keras import ops

from keras_flows import distribute
from keras_flows.bijection import Bijection, constant_log_det
from keras_flows.layers.partition import Partition


@keras.saving.register_keras_serializable(package="keras_flows")
class BatchNorm(Bijection):
    """Batch normalisation as a bijection.

    z = (x - mean) / sqrt(var + epsilon); log_det = -cells / 2 * sum(log(var + epsilon)).

    RealNVP, section 3.7 and released code. In training mean and variance are the batch's, by
    channel, and the running averages move by new = momentum * old + (1 - momentum) * batch's;
    otherwise, and in the inverse always, they are the running averages. With `partition` only the
    part that a coupling with the same arguments changes is normalised; a checkerboard's statistics
    count the other part as zeros, as the released code does. Shapes: (batch, D) or
    (batch, height, width, channels), unchanged.
    """

    synchronized = True  # as Keras calls it: the statistics are those of the global batch

    def __init__(self, *, partition=None, swap=False, momentum=0.9, epsilon=1e-4, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= momentum <= 1:
            raise ValueError(
                f"Argument `momentum` must be in [0, 1]. Received: momentum={momentum}"
            )
        self.partition = partition
        self.swap = swap
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        self._split = None
        if self.partition is not None:
            self._split = Partition(self.partition, self.swap, input_shape[1:])
            channels = self._split.sizes[1]
        self.moving_mean = self.add_weight(
            name="moving_mean", shape=(channels,), initializer="zeros", trainable=False
        )
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=(channels,), initializer="ones", trainable=False
        )

    def forward_and_log_det(self, x, condition=None, training=False):
        return self._of_changed_part(self._normalize, x, training)

    def inverse_and_log_det(self, z, condition=None, training=False):
        return self._of_changed_part(self._denormalize, z, training)

    def _of_changed_part(self, method, x, training):
        if self._split is None:
            return method(x, math.prod(x.shape[1:-1]), training)
        x1, x2 = self._split.split(x)
        y2, log_det = method(x2, self._split.changed_cells, training)
        return self._split.merge(x1, self._split.where_free(y2)), log_det

    def _normalize(self, x, cells, training):
        mean, variance = self.moving_mean, self.moving_variance
        if training and self.trainable:  # frozen, it keeps its averages, as Keras' own does
            mean, variance = distribute.channel_moments(x)
            for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(self.momentum * moving + (1 - self.momentum) * new)
        log_scale = -0.5 * ops.log(variance + self.epsilon)
        return (x - mean) * ops.exp(log_scale), self._log_det(log_scale, cells, x)

    def _denormalize(self, z, cells, training):
        log_scale = 0.5 * ops.log(self.moving_variance + self.epsilon)
        return z * ops.exp(log_scale) + self.moving_mean, self._log_det(log_scale, cells, z)

    def _log_det(self, log_scale, cells, x):
        return constant_log_det(cells * ops.sum(log_scale), x)
