"""Between 8-bit images and the continuous values that a density needs."""

import tensorflow as tf
from keras import ops

from keras_flows.arguments import is_integer, require

# Kinds of noise, so that a seed's noise in fit, in evaluate and so on have nothing in common.
FIT, EVALUATE, ADAPT, LOG_PROB, DROP_LABELS = range(5)


def number_of_bits(bits):
    """Those of a model's images, 8 by default; ValueError for another number than 1..8."""
    valid = bits is None or (is_integer(bits) and 1 <= bits <= 8)
    require(valid, "Argument `bits` must be an integer in 1..8", bits=bits)
    return 8 if bits is None else int(bits)


def to_bins(images, bits):
    """floor(x / 2^(8 - bits)): the number of the bin, in [0, 2^bits), as a float."""
    return images if bits == 8 else ops.floor(images / 2 ** (8 - bits))


def to_images(x, bits):
    """The uint8 images of dequantised values; what lies outside goes to the nearest bin."""
    bins = ops.clip(ops.floor(x), 0, 2**bits - 1)
    return ops.cast(bins * 2 ** (8 - bits), "uint8")


def uniform_noise(shape, dtype, kind, seed, *counters):
    """Noise in [0, 1), a pure function of kind, seed, counters and the index in the batch."""
    return tf.random.stateless_uniform(shape, _key(kind, seed, *counters), dtype=dtype)


def normal_noise(shape, dtype, kind, seed, *counters):
    """Standard normal noise, as `uniform_noise`."""
    return tf.random.stateless_normal(shape, _key(kind, seed, *counters), dtype=dtype)


def _key(kind, seed, *counters):
    key = tf.stack([tf.cast(seed, tf.int64), tf.constant(kind, tf.int64)])
    for counter in counters:
        key = tf.random.experimental.stateless_fold_in(key, tf.cast(counter, tf.int64))
    return key
