"""Data-dependent initialisation: the state of being in `adapt`, and ActNorm's initial weights.

`Bijection.adapt` is one eager forward pass with `adapting()` on. A layer whose initial weights
depend on the data asks `is_adapting()` and sets them before it computes, so that each layer sees
what the layers before it, already adapted, hand on - inside conditioner networks too.
"""

import contextvars

from keras import ops

from keras_flows import distribute
from keras_flows.context import having

# The factor in exp(3 * log_scale) and the floor under the standard deviation, as Glow released.
LOG_SCALE_FACTOR = 3.0
EPSILON = 1e-6

_adapting = contextvars.ContextVar("keras_flows_adapting", default=False)


def adapting():
    """Within this context data-dependent layers set their weights from what they are called on."""
    return having(_adapting, True)


def is_adapting():
    return _adapting.get()


def normalize_channels(bias, log_scale, x):
    """Sets both so that (x + bias) exp(3 log_scale) has mean 0 and deviation 1 by channel."""
    mean, deviation = mean_and_deviation(ops.cast(x, bias.dtype))
    bias.assign(-mean)
    log_scale.assign(-ops.log(deviation + EPSILON) / LOG_SCALE_FACTOR)


def mean_and_deviation(x):
    """Of each channel (last axis); 1 is the deviation of one that does not vary, or has no square.

    Nothing tells its scale: were it multiplied by the inverse of a floor under the deviation, the
    first example that differs would be a million deviations away.
    """
    mean, variance = distribute.channel_moments(x)
    axes = list(range(len(x.shape) - 1))
    varying = ops.cast(ops.max(x, axis=axes) > ops.min(x, axis=axes), x.dtype)
    varying = (distribute.global_sum(varying) > 0) & (variance > 0)
    return mean, ops.where(varying, ops.sqrt(variance), 1)
