import math

import keras
from keras import ops

from keras_flows.arguments import require
from keras_flows.bijection import Bijection, sum_over_event


@keras.saving.register_keras_serializable(package="keras_flows")
class Logit(Bijection):
    """Opens the unit interval: p = alpha + (1 - 2 alpha) x, z = log(p / (1 - p)).

    log_det = sum(log(1 - 2 alpha) - log p - log(1 - p)).

    RealNVP, section 4.1; symmetric, as in its released code. Shapes: any (batch, ...), with x
    in [0, 1], unchanged.

    Args:
        alpha: in [0, 0.5), how far the ends are kept from 0 and 1. With alpha = 0 the ends go
            to infinity.

    Raises:
        ValueError: if `alpha` is not in its range.
    """

    def __init__(self, alpha=0.05, **kwargs):
        super().__init__(**kwargs)
        require(0 <= alpha < 0.5, "Argument `alpha` must be in [0, 0.5)", alpha=alpha)
        self.alpha = alpha

    def forward_and_log_det(self, x, condition=None, training=False):
        p = self.alpha + (1 - 2 * self.alpha) * x
        z = ops.log(p) - ops.log(1 - p)  # exact enough, and ONNX has no log1p
        return z, -self._inverse_log_det(z)

    def inverse_and_log_det(self, z, condition=None, training=False):
        return (ops.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha), self._inverse_log_det(z)

    def _inverse_log_det(self, z):
        # log p = -softplus(-z) and log(1 - p) = -softplus(z) stay finite at both ends.
        log_slope = -ops.softplus(z) - ops.softplus(-z) - math.log(1 - 2 * self.alpha)
        return sum_over_event(log_slope)
