import itertools
import math
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_flows.arguments import check_in, check_integers, require
from keras_flows.layers.coupling import Coupling

# What the authors' code keeps: the least width and height of a bin, in parts of the whole interval,
# and the least slope at a knot.
MIN_SIZE = 1e-3
MIN_SLOPE = 1e-3


@keras.saving.register_keras_serializable(package="keras_flows")
class SplineCoupling(Coupling):
    """Bends one part of the input by monotonic splines whose knots are functions of the other.

    z1 = x1, z2 = spline(x2; knots(x1)); log_det is the sum of the logarithms of the slopes.

    Neural spline flows (Durkan et al. 2019, arXiv:1906.04032), sections 3.1 and 3.2: on
    [-tail_bound, tail_bound] each element passes through its own rational-quadratic spline, a
    quotient of two quadratics in each of `bins` bins; outside it stays as it is, and so does what
    is infinite or NaN. The inverse is as exact and about as fast. Parameters that are zero give the
    identity: the authors' code adds nothing to the slopes' (theirs is the logarithm of
    exp(1 - 0.001) - 1 larger), and divides those of widths and heights by the root of the
    network's width. Shapes and errors: those of `Coupling`.

    Args:
        network, partition, swap, output_layer, condition_shape: as for `Coupling`; the output layer
            has 3 bins - 1 parameters, each of all channels that change: `bins` widths, `bins`
            heights, both before a softmax, and the slopes at the `bins` - 1 inner knots, before a
            softplus.
        bins: K, at least 2 and below 1000.
        tail_bound: B, where the spline ends; positive.

    Raises:
        ValueError: for `bins` or a `tail_bound` out of range.

    Example:

    ```python
    layer = keras_flows.layers.SplineCoupling(keras_flows.networks.ResidualMLP(64), bins=8)
    layer(np.array([[0.5, -1.0, 2.0, 4.0]]))                         # (1, 4)
    ```
    """

    def __init__(
        self,
        network,
        *,
        bins=8,
        tail_bound=3.0,
        partition="half",
        swap=False,
        output_layer=None,
        **kwargs,
    ):
        super().__init__(
            network, partition=partition, swap=swap, output_layer=output_layer, **kwargs
        )
        check_integers(2, bins=bins)
        require(
            bins * MIN_SIZE < 1,
            f"Argument `bins` must be below {1 / MIN_SIZE:.0f}, as each takes {MIN_SIZE} at least",
            bins=bins,
        )
        check_in("(0, inf)", tail_bound=tail_bound)
        self.bins = bins
        self.tail_bound = tail_bound
        self.parameters_per_channel = 3 * bins - 1

    def transform(self, x2, parameters):
        return self._within_bounds(_forward, x2, parameters)

    def inverse_transform(self, z2, parameters):
        return self._within_bounds(_inverse, z2, parameters)

    def _within_bounds(self, spline, values, parameters):
        """`spline`, of the unit interval, stretched over the bounds; the identity outside."""
        flat = tf.reshape(values, (-1,))
        # A parameter's values lie side by side: to sum over bins is then to add rows.
        number = self.parameters_per_channel
        parameters = tf.reshape(parameters, (-1, number, values.shape[-1]))
        parameters = tf.reshape(tf.transpose(parameters, [1, 0, 2]), (number, -1))
        inside = tf.abs(flat) < self.tail_bound
        # What is outside must not be computed with: an infinite slope is not one times zero.
        scaled = tf.where(inside, flat / (2 * self.tail_bound), 0) + 0.5
        scaled, log_slope = spline(scaled, parameters, self.bins)
        flat = tf.where(inside, (scaled - 0.5) * (2 * self.tail_bound), flat)
        shape = (-1, *values.shape[1:])
        return tf.reshape(flat, shape), tf.reshape(tf.where(inside, log_slope, 0), shape)


class _Bin(NamedTuple):
    """The bin that each value is in: where it begins, its sizes, and the slopes at its ends."""

    left: tf.Tensor
    width: tf.Tensor
    bottom: tf.Tensor
    height: tf.Tensor
    left_slope: tf.Tensor
    right_slope: tf.Tensor

    @property
    def slope(self):
        return self.height / self.width


def _forward(x, parameters, bins):
    """(y, log dy/dx) of one spline of the unit interval for each of (n,) values."""
    bin = _find(x, parameters, bins, axis=0)
    across = _within((x - bin.left) / bin.width)
    up, log_slope = _evaluate(across, bin)
    return bin.bottom + bin.height * up, log_slope


def _inverse(y, parameters, bins):
    """(x, log dx/dy)."""
    bin = _find(y, parameters, bins, axis=1)
    across = _solve(_within((y - bin.bottom) / bin.height), bin)
    return bin.left + bin.width * across, -_evaluate(across, bin)[1]


def _evaluate(across, bin):
    """How far up a bin, from 0 to 1, the spline is that far across it, and its log slope."""
    left, right, slope = bin.left_slope, bin.right_slope, bin.slope
    rest = 1 - across
    both, square = across * rest, tf.square(across)
    # Sums of what is positive: nothing cancels, whatever the slopes.
    denominator = slope * (1 - 2 * both) + (left + right) * both
    up = (slope * square + left * both) / denominator
    numerator = right * square + 2 * slope * both + left * tf.square(rest)
    return up, tf.math.log(numerator) + 2 * tf.math.log(slope / denominator)


def _solve(up, bin):
    """How far across a bin the spline is that far up: the root of a quadratic equation.

    a t^2 + b t - slope * up = 0 with a + b = slope. Seen from the bin's other corner it is the same
    with 2 slope - b in the place of b, so that it can be had with a >= 0, where nothing cancels.
    """
    left, right, slope = bin.left_slope, bin.right_slope, bin.slope
    b = left - up * (left + right - 2 * slope)
    turned = b > slope
    b = tf.where(turned, 2 * slope - b, b)
    c = slope * tf.where(turned, 1 - up, up)
    root = tf.sqrt(tf.square(b) + 4 * (slope - b) * c)
    # Of the two forms of the root the one that does not subtract.
    falls = b < 0
    across = tf.where(falls, root - b, 2 * c) / tf.where(falls, 2 * (slope - b), root + b)
    return tf.where(turned, 1 - across, across)


def _find(value, parameters, bins, axis):
    """The `_Bin` of each of (n,) values, of x (axis 0) or y (1); parameters (3 bins - 1, n)."""
    sizes, slopes = tf.split(parameters, [2 * bins, bins - 1])
    sizes = tf.reshape(sizes, (2, bins, -1))
    sizes = tf.exp(sizes - tf.stop_gradient(tf.reduce_max(sizes, axis=1, keepdims=True)))

    # A `tf.cumsum` takes as long as all the rest.
    *knots, total = itertools.accumulate(tf.unstack(sizes[axis]))
    share = _share(total, bins)
    passed = [value >= MIN_SIZE * k + share * knot for k, knot in enumerate(knots, start=1)]
    passed = tf.cast(tf.stack(passed), value.dtype)
    before = tf.pad(passed, [[0, 1], [0, 0]])
    within = tf.pad(passed, [[1, 0], [0, 0]], constant_values=1) - before

    begin, size, total = _sums(sizes, before, within)
    share = _share(total, bins)
    left, bottom = tf.unstack(MIN_SIZE * tf.reduce_sum(passed, axis=0) + share * begin)
    width, height = tf.unstack(MIN_SIZE + share * size)
    # At both ends of the spline a slope's parameter is zero: there it is 1, as it is outside.
    slopes = tf.stack([_select(within[1:], slopes), _select(within[:-1], slopes)])
    slopes = MIN_SLOPE + tf.nn.softplus(slopes + math.log(math.expm1(1 - MIN_SLOPE)))
    return _Bin(left, width, bottom, height, *tf.unstack(slopes))


def _share(total, bins):
    """What of the interval is not given to each bin alike, by unit of the bins' sizes."""
    return (1 - MIN_SIZE * bins) / total


def _within(part):
    """A part of a bin, which rounding may put outside of 0 to 1, where roots need not exist."""
    return part + tf.stop_gradient(tf.clip_by_value(part, 0, 1) - part)


# The gradients are written out as `shift_and_scale`'s is, and for the same reason.


@tf.custom_gradient
def _sums(sizes, before, within):
    """Of each column: the sizes of the bins `before` it, of the one that it is in, and of all."""
    sums = [tf.reduce_sum(each, axis=1) for each in (before * sizes, within * sizes, sizes)]

    def gradient(*dsums):
        dbefore, dwithin, dall = (dsum[:, None] for dsum in dsums)
        return before * dbefore + within * dwithin + dall, None, None

    return sums, gradient


@tf.custom_gradient
def _select(within, table):
    """The value of each column that is `within` 1; (n,) of (rows, n)."""
    chosen = tf.reduce_sum(within * table, axis=0)
    return chosen, lambda dchosen: (None, within * dchosen)
