"""Sums and statistics over the global batch: all replicas' together, as one device would see it."""

import math

import tensorflow as tf
from keras import ops


def global_sum(x):
    """The sum of `x` over the replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def replica_id():
    """This replica's number, 0 where there is but one."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def channel_moments(x):
    """Mean and variance of each channel (last axis), each of shape (channels,).

    Sums and counts are reduced, not means, so that replicas may hold different numbers of examples;
    and the variance in a second pass, so that nothing cancels.
    """
    axes = list(range(len(x.shape) - 1))
    cells = ops.shape(x)[0] * math.prod(x.shape[1:-1])
    count = ops.cast(global_sum(tf.convert_to_tensor(cells)), x.dtype)
    mean = global_sum(ops.sum(x, axis=axes)) / count
    return mean, global_sum(ops.sum(ops.square(x - mean), axis=axes)) / count
