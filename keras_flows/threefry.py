"""Random numbers of which each row is a function of its own seed alone.

Threefry-2x32 of 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in
operations on int32, which TensorFlow, XLA, ONNX Runtime and OpenVINO compute to the same bits; on
uint32 not all of them do.
"""

import math

import tensorflow as tf
from tensorflow import bitwise

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA


def block(key, counter):
    """Two words of random bits of two words of key and two of counter, int32 that broadcast."""
    keys = (*key, bitwise.bitwise_xor(bitwise.bitwise_xor(*key), PARITY))
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(20):
        a += b
        b = bitwise.bitwise_xor(_rotate(b, ROTATIONS[i % 8]), a)
        if i % 4 == 3:
            turn = i // 4 + 1
            a, b = a + keys[turn % 3], b + keys[(turn + 1) % 3] + turn
    return a, b


def uniform(seeds, size, dtype):
    """Numbers in (0, 1), (batch, size), row i of seeds[i], which has two int32.

    They are the centres of 2^23 intervals or, in float64, 2^52: one more bit would round to 1.
    """
    double = tf.as_dtype(dtype) == tf.float64
    blocks = size if double else math.ceil(size / 2)
    # TensorFlow adds int32 on the CPU, wherever they are, but shifts them where they are.
    with tf.device("CPU:0"):
        a, b = block((seeds[:, :1], seeds[:, 1:]), (tf.range(blocks), 0))
        if double:
            high, low = (tf.cast(_shift_right(word, 6), dtype) for word in (a, b))
            return (high * 2.0**26 + low + 0.5) * 2.0**-52
        words = tf.concat([a, b], axis=1)[:, :size]
        return (tf.cast(_shift_right(words, 9), dtype) + 0.5) * 2.0**-23


def normal(seeds, size, dtype):
    """Standard normal numbers as `uniform`, by Box and Muller; in float32 all below 5.8."""
    half = math.ceil(size / 2)
    distance, direction = tf.split(uniform(seeds, 2 * half, dtype), 2, axis=1)
    radius, angle = tf.sqrt(-2 * tf.math.log(distance)), 2 * math.pi * direction
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=1)[:, :size]


def logistic(seeds, size, dtype):
    """Standard logistic numbers as `uniform`."""
    u = uniform(seeds, size, dtype)
    return tf.math.log(u) - tf.math.log(1 - u)


def _rotate(word, bits):
    return bitwise.bitwise_or(bitwise.left_shift(word, bits), _shift_right(word, 32 - bits))


def _shift_right(word, bits):
    """With zeros from the left, where int32's own shift repeats the sign."""
    return bitwise.bitwise_and(bitwise.right_shift(word, bits), 2 ** (32 - bits) - 1)
