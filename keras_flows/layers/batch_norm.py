import math

import keras
from keras import ops

from keras_flows import distribute
from keras_flows.arguments import check_in
from keras_flows.bijection import Bijection, constant_log_det
from keras_flows.layers.partition import Roles, get_partition


@keras.saving.register_keras_serializable(package="keras_flows")
class BatchNorm(Bijection):
    """Batch normalisation as a bijection.

    z = (x - mean) / sqrt(var + epsilon); log_det = -cells / 2 * sum(log(var + epsilon)).

    RealNVP, section 3.7 and released code. In training mean and variance are the batch's, by
    channel, and the running averages move by new = momentum * old + (1 - momentum) * batch's;
    otherwise, for a batch of a single cell, which has no variance, and in the inverse always, they
    are the running averages. With `partition` only the part that a coupling with the same arguments
    changes is normalised; a checkerboard's statistics count the other part as zeros, as the
    released code does. Shapes: (batch, D), (batch, tokens, channels) or
    (batch, height, width, channels), unchanged.

    Example:

    ```python
    layer = keras_flows.layers.BatchNorm()
    z = layer(np.random.normal(size=(64, 6)), training=True)        # by the batch's moments
    x = layer.inverse(z)                         # by the averages, which have moved a tenth
    ```
    """

    synchronized = True  # as Keras calls it: the statistics are those of the global batch
    invertible_in_training = False  # it forgets the mean and the variance of its batch

    def __init__(self, *, partition=None, swap=False, momentum=0.9, epsilon=1e-4, **kwargs):
        super().__init__(**kwargs)
        check_in("[0, 1]", momentum=momentum)
        check_in("(0, inf)", epsilon=epsilon)
        self.partition = partition
        self.swap = swap
        self.momentum = momentum
        self.epsilon = epsilon
        self._roles = None
        if partition is not None:
            self._roles = Roles(get_partition(partition, self.dtype_policy), swap)

    def build(self, input_shape):
        self._changed = tuple(input_shape)
        if self._roles is not None:
            _, self._changed = self._roles.build(input_shape)
        channels = self._changed[-1]
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
        if self._roles is None:
            y, log_scale = method(x, training)
            return y, self._log_det(log_scale, x)
        x1, x2 = self._roles.split(x)
        y2, log_scale = method(x2, training)
        return self._roles.merge(x1, self._roles.where_changed(y2)), self._log_det(log_scale, x)

    def _normalize(self, x, training):
        mean, variance = self.moving_mean, self.moving_variance
        if training and self.trainable:  # frozen, it keeps its averages, as Keras' own does
            mean, variance = distribute.channel_moments(x, otherwise=(mean, variance))
            for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(self.momentum * moving + (1 - self.momentum) * new)
        log_scale = -0.5 * ops.log(variance + self.epsilon)
        return (x - mean) * ops.exp(log_scale), log_scale

    def _denormalize(self, z, training):
        log_scale = 0.5 * ops.log(self.moving_variance + self.epsilon)
        return z * ops.exp(log_scale) + self.moving_mean, log_scale

    def _log_det(self, log_scale, x):
        if self._roles is None or self._roles.partition.masks() is None:
            return constant_log_det(math.prod(self._changed[1:-1]) * ops.sum(log_scale), x)
        cells = self._roles.where_changed(ops.broadcast_to(log_scale, (1, *self._changed[1:])))
        return constant_log_det(ops.sum(cells), x)
