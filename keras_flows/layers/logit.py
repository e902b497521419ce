import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_flows.arguments import check_in, require
from keras_flows.bijection import Bijection, sum_over_event

# How far what has bounds is kept from them, in parts of the range.
MARGIN = 1e-6


@keras.saving.register_keras_serializable(package="keras_flows")
class Logit(Bijection):
    """Opens the unit interval: p = alpha + (1 - 2 alpha) x, z = log(p / (1 - p)).

    log_det = sum(log(1 - 2 alpha) - log p - log(1 - p)).

    RealNVP, section 4.1; symmetric, as in its released code. Shapes: any (batch, ...), with x
    in [0, 1], unchanged.

    With `low` and `high` it opens the interval between them, feature by feature (last axis):
    p = (x - low) / (high - low), log_det = -sum(log(high - low) + log p + log(1 - p)). There alpha
    shrinks nothing; instead x is kept a millionth of the range from the ends, both ways: what lies
    on a bound or beyond counts as being there, and samples fall inside. NaN stays NaN.

    Args:
        alpha: in [0, 0.5), how far the ends are kept from 0 and 1, by default 0.05. With alpha = 0
            the ends go to infinity. Not for bounds.
        low, high: a number for all features, or a list with one for each: None for those without
            bounds, which stay as they are.

    Raises:
        ValueError: for an `alpha` that is not in its range, or is given with bounds; for bounds
            that are not finite, not in order, on one side only, or not as many as the features.

    Example: of three features, of which the second has no bounds.

    ```python
    layer = keras_flows.layers.Logit(low=[0, None, -1], high=[1, None, 1])
    layer(np.array([[0.5, 7.0, 0.0]])).numpy().tolist()              # [[0.0, 7.0, 0.0]]
    ```
    """

    def __init__(self, alpha=None, *, low=None, high=None, **kwargs):
        super().__init__(**kwargs)
        self._interval = None
        if low is None and high is None:
            alpha = 0.05 if alpha is None else alpha
            check_in("[0, 0.5)", alpha=alpha)
        else:
            rule = "Argument `alpha` must be None beside `low` and `high`"
            require(alpha is None, rule, alpha=alpha, low=low, high=high)
            low, high = _as_plain(low=low), _as_plain(high=high)
            self._interval = _Interval(low, high, self.compute_dtype)
        self.alpha = alpha
        self.low = low
        self.high = high

    def build(self, input_shape):
        shape = () if self._interval is None else self._interval.low.shape
        require(
            shape in ((), (input_shape[-1],)),
            f"Arguments `low` and `high` must have a bound for each of {input_shape[-1]} features",
            low=self.low,
            high=self.high,
        )

    def forward_and_log_det(self, x, condition=None, training=False):
        if self._interval is not None:
            z = self._interval.open(x)
        else:
            p = self.alpha + (1 - 2 * self.alpha) * x
            z = ops.log(p) - ops.log(1 - p)  # exact enough, and ONNX has no log1p
        return z, -self._inverse_log_det(z)

    def inverse_and_log_det(self, z, condition=None, training=False):
        if self._interval is not None:
            x = self._interval.close(z)
        else:
            x = (ops.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        return x, self._inverse_log_det(z)

    def _inverse_log_det(self, z):
        # log p = -softplus(-z) and log(1 - p) = -softplus(z) stay finite at both ends.
        log_slope = -ops.softplus(z) - ops.softplus(-z)
        if self._interval is not None:
            log_slope = self._interval.where_bounded(log_slope + self._interval.log_range, 0)
        else:
            log_slope = log_slope - math.log(1 - 2 * self.alpha)
        return sum_over_event(log_slope)


class _Interval:
    """The features' bounds as constants of a dtype; 0 and 1 stand for none."""

    def __init__(self, low, high, dtype):
        received = {"low": low, "high": high}
        given = [np.array(bound, object) for bound in (low, high)]
        require(
            1 in (given[0].size, given[1].size) or given[0].shape == given[1].shape,
            "Arguments `low` and `high` must have as many bounds",
            **received,
        )
        low, high = np.broadcast_arrays(*given)
        self.bounded = low != None  # noqa: E711 (each of them)
        require(
            np.array_equal(self.bounded, high != None),  # noqa: E711
            "Arguments `low` and `high` must be given for the same features: for one that is "
            "bounded on one side only give neither, and as data its logarithm, log(x - low) or "
            "log(high - x)",
            **received,
        )
        self.low = np.where(self.bounded, low, 0).astype(dtype)
        self.high = np.where(self.bounded, high, 1).astype(dtype)
        size = self.high - self.low
        require(
            np.all(np.isfinite(size) & (size > 0)),
            "Arguments `low` and `high` must be finite, and `low` below `high`",
            **received,
        )
        self.log_range = np.log(size)
        # Where the margin is less than the floats next to the bounds are away, those.
        margin = (MARGIN * size).astype(dtype)
        self.first = np.maximum(self.low + margin, np.nextafter(self.low, self.high))
        self.last = np.minimum(self.high - margin, np.nextafter(self.high, self.low))

    def open(self, x):
        inside = self._kept_inside(x)
        # Each distance by itself: 1 - p would round what is near the upper end. And one logarithm:
        # of a range of a million, two of them are three times as far off in the middle.
        return self.where_bounded(ops.log((inside - self.low) / (self.high - inside)), x)

    def close(self, z):
        # From the nearer end, for the same reason.
        below = z < 0
        distance = (self.high - self.low) * ops.sigmoid(tf.where(below, z, -z))
        x = tf.where(below, self.low + distance, self.high - distance)
        return self.where_bounded(self._kept_inside(x), z)

    def where_bounded(self, x, otherwise):
        return tf.where(self.bounded, x, otherwise)

    def _kept_inside(self, x):
        return tf.clip_by_value(x, self.first, self.last)


def _as_plain(**argument):
    """A bound, or a list of one for each feature, as numbers or None that a config can hold."""
    ((name, value),) = argument.items()
    bounds = np.array(value, object)
    require(
        bounds.ndim <= 1 and all(b is None or np.isreal(b) for b in bounds.ravel()),
        f"Argument `{name}` must be a number, or a list with a number or None for each feature",
        **argument,
    )
    plain = [None if b is None else float(b) for b in bounds.ravel()]
    return plain if bounds.ndim else plain[0]
