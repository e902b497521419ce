"""A batch in parts, one for each core: rows depend on no other, so that cores need not wait.

TensorFlow divides each operation among its threads, which does not pay for the many small ones of
a flow. It runs operations that do not depend on each other at once, as those of two parts are.
"""

import contextlib
import contextvars
import functools
import math
import os
import pathlib

import keras
import tensorflow as tf

from keras_flows import distribute
from keras_flows.context import having
from keras_flows.private import declared_trainable, flatten_layers

_divides = contextvars.ContextVar("keras_flows_divides_batches", default=False)

# A counter of batches holds, beside their number, this many times the first row of a part.
ROW = 2**32

CGROUP = pathlib.Path("/sys/fs/cgroup")  # where Linux tells what a container may use


def dividing_batches():
    """Within this context a model divides batches: in graphs of its own, to be run here.

    Graphs that others trace may run on another machine, or be vectorised, and TensorFlow vectorises
    no gradient of a part, which is a function of its own.
    """
    return having(_divides, True)


def in_parts(function, count, *batches, counters=()):
    """`function(*batches)`, a structure of batches, computed in `count` parts of as many rows.

    Where rows do not divide, the last parts overlap and drop what they share: a part is never
    empty, which oneDNN cannot convolve. None among `batches` stays None. What adds losses, which
    may be means over the batch, is computed whole. To the last entries of `counters`, variables of
    integers, `ROW` is added for each row before a part; what it makes of them is kept once.
    """
    count = min(count, batches[0].shape[0] or count)
    if count == 1:
        return function(*batches)
    losses = []

    # Traced once for all parts. Not inlined, or one thread would optimize a copy for each core;
    # so each core does its own.
    @functools.partial(tf.function, autograph=False, experimental_attributes={"_noinline": True})
    def part(start, *batches):
        here = [
            (variable, variable + ROW * tf.cast(start, tf.int64) * _last(variable))
            for variable in counters
        ]
        with keras.StatelessScope(here, collect_losses=True) as scope:
            results = function(*batches)
        losses.extend(scope.losses)
        return results, [scope.get_current_value(variable) for variable in counters]

    rows = tf.shape(batches[0])[0]
    size = (rows + count - 1) // count
    results, counted = [], []
    for i in range(count):
        first = tf.minimum(i * size, rows)
        start = tf.minimum(first, rows - size)
        some_rows = [_rows(batch, start, size) for batch in batches]
        # A constant would make a function of its own of each part.
        some, after = part(start if counters else None, *some_rows)
        results.append(tf.nest.map_structure(lambda x, new=first - start: x[new:], some))
        counted.append(after)
    if losses:
        return function(*batches)
    for variable, value in zip(counters, counted[0], strict=True):  # of the part from row 0 on
        variable.assign(value)
    return tf.nest.map_structure(lambda *each: tf.concat(each, axis=0), *results)


def number_of_parts(bijection, is_image, training):
    """How many parts of a batch `bijection` computes at once: 1 unless that is faster, and safe.

    On CPUs, one for each core of a replica; of images only where an operation has one thread, as
    two threads for a convolution are as good. Never where rows depend on others.
    """
    if not _divides.get() or tf.executing_eagerly() or _has_accelerator():
        return 1
    if is_image and _threads("intra") != 1:
        return 1
    if training and _depends_on_the_batch(bijection):
        return 1
    cores = _threads("inter") or _number_of_cores()
    return max(1, min(cores, _number_of_cores()) // distribute.local_replicas())


def counters_of(bijection):
    """Variables of its layers that count batches, and rows before a part; see `in_parts`."""
    own = {id(variable) for variable in bijection.variables}  # without those of patterns
    counters = (v for layer in flatten_layers(bijection) for v in getattr(layer, "counters", ()))
    return [variable for variable in counters if id(variable) in own]


def _depends_on_the_batch(bijection):
    """Whether, in training, it computes across rows or changes more of a state than counters."""
    layers = list(flatten_layers(bijection))
    kinds = ("constant_weights", "counters")
    harmless = [v for layer in layers for kind in kinds for v in getattr(layer, kind, ())]
    stateless = {id(variable) for variable in [*declared_trainable(bijection), *harmless]}
    return any(
        getattr(layer, "synchronized", False)
        or any(id(variable) not in stateless for variable in layer.variables)
        for layer in layers
    )


def _last(variable):
    """1 at the last entries of the last axis, else 0."""
    return tf.one_hot(variable.shape[-1] - 1, variable.shape[-1], dtype=variable.dtype)


def _rows(batch, start, size):
    if batch is None:
        return None
    part = batch[start : start + size]
    part.set_shape((None, *batch.shape[1:]))
    return part


def _has_accelerator():
    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())


def _threads(kind):
    """How many threads TensorFlow was told to use within, or for, operations; 0 for all cores."""
    configured = getattr(tf.config.threading, f"get_{kind}_op_parallelism_threads")()
    return configured or int(os.environ.get(f"TF_NUM_{kind.upper()}OP_THREADS", 0))


def _number_of_cores():
    """Those that this process may use, a container's quota of their time included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores, math.ceil(_quota(CGROUP) or cores)))


def _quota(cgroup):
    """How many cores' time a container has, as `docker run --cpus` sets it; None for all."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # version 2, 1
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
            return None if quota in ("max", "-1") else int(quota) / int(period)
    return None
