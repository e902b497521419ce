"""Sums and statistics over the global batch: all replicas' together, as one device would see it."""

import functools
import math

import tensorflow as tf
from keras import ops


def global_sum(x):
    """The sum of `x`, a tensor or a list of tensors, over the replicas.

    Called eagerly outside of a replica, as in `adapt`, the sum over the workers.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return x
    context = tf.distribute.get_replica_context()
    if context is not None:
        # TensorFlow reduces what is on a known device only, and what a loop returns is on none.
        x = tf.nest.map_structure(tf.identity, x)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, x)
    if num_workers(strategy) == 1 or not tf.executing_eagerly():
        return x
    return _sum_over_workers(strategy)(x)


@functools.cache  # or each sum would be traced anew
def _sum_over_workers(strategy):
    @tf.function(autograph=False)
    def sum_over_workers(x):
        def of_first_replica():  # of each worker
            first = replica_id() % len(strategy.extended.worker_devices) == 0
            return global_sum([tf.where(first, each, tf.zeros_like(each)) for each in flat])

        flat = tf.nest.flatten(x)
        sums = [
            strategy.experimental_local_results(each)[0] for each in strategy.run(of_first_replica)
        ]
        return tf.nest.pack_sequence_as(x, sums)

    return sum_over_workers


def num_workers(strategy):
    """How many processes, each with replicas of its own, `strategy` has."""
    if strategy.num_replicas_in_sync == 1:  # the default strategy does not know its devices
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def local_replicas():
    """How many of the replicas share this machine."""
    strategy = tf.distribute.get_strategy()
    return strategy.num_replicas_in_sync // num_workers(strategy)


def is_chief(strategy):
    """Whether this process is the one, of `strategy`'s workers, that writes files."""
    return strategy.extended.should_checkpoint


def replica_id():
    """This replica's number, 0 where there is but one."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def channel_moments(x, otherwise=None):
    """Mean and variance of each channel (last axis), each of shape (channels,).

    Sums and counts are reduced, not means, so that replicas may hold different numbers of examples.
    A second pass, about that mean, gives the variance, so that nothing cancels, and corrects the
    mean: a sum of values far from 0 is rounded by more than they vary. A single cell has no
    variance: then they are `otherwise`, if given, such as the running averages of batch
    normalisation.
    """
    axes = list(range(len(x.shape) - 1))
    cells = ops.cast(ops.shape(x)[0] * math.prod(x.shape[1:-1]), x.dtype)
    total = global_sum(tf.concat([ops.sum(x, axis=axes), [cells]], axis=0))  # in one exchange
    mean, count = total[:-1] / total[-1], total[-1]
    x = x - mean
    sums = global_sum(tf.stack([ops.sum(each, axis=axes) for each in (x, ops.square(x))]))
    off, square = tf.unstack(sums / count)
    mean, variance = mean + off, ops.maximum(square - ops.square(off), 0)
    if otherwise is None:
        return mean, variance
    several = count > 1
    return tuple(
        ops.where(several, *pair) for pair in zip((mean, variance), otherwise, strict=True)
    )
