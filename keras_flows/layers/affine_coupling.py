import math

import keras
import tensorflow as tf
from keras import ops

from keras_flows.arguments import check_in, check_one_of
from keras_flows.layers.coupling import Coupling

SCALES = ("sigmoid", "half_sigmoid", "max_sigmoid", "tanh", "exp")


@keras.saving.register_keras_serializable(package="keras_flows")
class AffineCoupling(Coupling):
    """Shifts and scales one part of the input by functions of the other.

    z1 = x1, z2 = (x2 + t(x1)) exp(s(x1)); log_det = sum(s(x1)).

    RealNVP, section 3.2, and Glow, table 1. Both papers' released code shifts first, where the
    papers' text scales first. The output layer's channels are t in the first half and, in the
    second, h, of which s is made. Shapes and errors: those of `Coupling`.

    Args:
        network, partition, swap, output_layer, condition_shape: as for `Coupling`; the output layer
            has two channels for each channel that changes.
        scale: how s is bounded. "sigmoid": s = log sigmoid(h + 2) (Glow's code). "half_sigmoid":
            s = log((1 + sigmoid(h + 2)) / 2), whose inverse at most doubles; of a scale near 0 it
            explodes (Behrmann et al. 2021, arXiv:2006.09347). "max_sigmoid":
            s = log(max_scale sigmoid(h)) (Jet). "tanh": s = bound * tanh(h), with `bound` one
            learned scalar (RealNVP's code). "exp": s = h.
        max_scale: for "max_sigmoid", positive. At 2 the coupling starts as the identity.
        bound_initializer, bound_regularizer: for `bound`. If it starts at 0, the output
            layer must not be zero-initialised, or neither of them learns.

    Raises:
        ValueError: for an unknown scale, or a `max_scale` that is not positive.

    Example:

    ```python
    layer = keras_flows.layers.AffineCoupling(keras_flows.networks.ConvNet(32), scale="tanh")
    x = np.ones((4, 8, 8, 2))
    z = layer(x)                                 # (4, 8, 8, 2)
    log_det = layer.forward_log_det_jacobian(x)  # (4,)
    ```
    """

    parameters_per_channel = 2

    def __init__(
        self,
        network,
        *,
        partition="half",
        swap=False,
        scale="sigmoid",
        max_scale=2.0,
        output_layer=None,
        bound_initializer="ones",
        bound_regularizer=None,
        **kwargs,
    ):
        super().__init__(
            network, partition=partition, swap=swap, output_layer=output_layer, **kwargs
        )
        check_one_of(SCALES, scale=scale)
        check_in("(0, inf)", max_scale=max_scale)
        self.scale = scale
        self.max_scale = max_scale
        self.bound_initializer = keras.initializers.get(bound_initializer)
        self.bound_regularizer = keras.regularizers.get(bound_regularizer)

    def build(self, input_shape):
        super().build(input_shape)
        if self.scale == "tanh":
            self.bound = self.add_weight(
                name="bound",
                shape=(),
                initializer=self.bound_initializer,
                regularizer=self.bound_regularizer,
            )

    def transform(self, x2, parameters):
        shift, log_scale = self._shift_and_log_scale(parameters)
        return shift_and_scale(x2, shift, log_scale), log_scale

    def inverse_transform(self, z2, parameters):
        shift, log_scale = self._shift_and_log_scale(parameters)
        return z2 * ops.exp(-log_scale) - shift, -log_scale

    def _shift_and_log_scale(self, parameters):
        shift, h = ops.split(parameters, 2, axis=-1)
        if self.scale == "sigmoid":
            return shift, ops.log_sigmoid(h + 2)
        if self.scale == "half_sigmoid":
            return shift, ops.log(0.5 + 0.5 * ops.sigmoid(h + 2))
        if self.scale == "max_sigmoid":
            return shift, math.log(self.max_scale) + ops.log_sigmoid(h)
        if self.scale == "tanh":
            return shift, self.bound * ops.tanh(h)
        return shift, h


@tf.custom_gradient
def shift_and_scale(x, shift, log_scale):
    """(x + shift) exp(log_scale), all of one shape.

    The gradient is written out because TensorFlow's own cannot know that the shapes are equal
    while the batch size is unknown, and would compute at each step what to sum over: nothing.
    """
    scale = tf.exp(log_scale)
    z = (x + shift) * scale

    def gradient(dz):
        dx = dz * scale
        return dx, dx, dz * z

    return z, gradient
